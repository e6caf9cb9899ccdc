"""Find how a model calls its blocks, and with what hidden states: so that each can be run by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.models.architecture import base_model, named_blocks


@dataclass(frozen=True)
class Call:
    """Hold what a block is called with beside the hidden states: masks, position embeddings."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]


@torch.no_grad()
def block_calls(model: nn.Module, window: torch.Tensor) -> dict[str, Call]:
    """Return how the model calls each block for one (1, window); without padding that holds for any batch."""
    calls: dict[str, Call] = {}

    def note(name: str, _: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls[name] = Call(positional[1:], named)

    handles = [
        block.register_forward_pre_hook(partial(note, name), with_kwargs=True) for name, block in named_blocks(model)
    ]
    try:
        base_model(model)(input_ids=window, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    """Signal that the first block was reached with these hidden states."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden


@torch.no_grad()
def before_first_block(model: nn.Module, token_ids: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the hidden states that the first block reads: (samples, window, hidden).

    token_ids: (samples, window) int64, of which ``batch`` samples go through the model at once.
    """

    def stop(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    def embedded(windows: torch.Tensor) -> torch.Tensor:
        try:
            base_model(model)(input_ids=windows, use_cache=False)
        except _Reached as reached:
            return reached.hidden
        raise SqueezeError(f"{type(model).__name__} never ran its first block")

    handle = named_blocks(model)[0][1].register_forward_pre_hook(stop)
    try:
        return torch.cat([embedded(windows) for windows in torch.split(token_ids, batch)])
    finally:
        handle.remove()
