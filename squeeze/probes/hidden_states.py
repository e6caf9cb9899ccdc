"""Watch the hidden states between a model's blocks, and compare another model's with them, a window at a time.

Place 0 is what the first block reads (the embeddings), place i what the i-th block leaves. Of one window, the
reference's states at all places are held; of the other model, none: they are compared as they come. A model that
computes a window in parts (through a cache of its own) is compared part by part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.models.architecture import named_blocks
from squeeze.records.distance import StateError

Seen = Callable[[int, Tensor], None]  # (place, states (1, tokens, hidden))
ARGUMENT = "hidden_states"  # as architectures that name it call a block's first


@dataclass
class States:
    """Hold a window's states of the reference by place, and hand them out again from the left."""

    parts: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, place: int, states: Tensor) -> None:
        """Keep states (1, tokens, hidden), those of the next tokens."""
        self.parts[place].append(states)

    def reader(self) -> Callable[[int, int], Tensor]:
        """Return what reads the states at a place, of as many further tokens as are asked: (place, tokens)."""
        whole = {place: torch.cat(parts, dim=1) for place, parts in self.parts.items()}
        taken: Counter[int] = Counter()

        def take(place: int, tokens: int) -> Tensor:
            start = taken[place]
            taken[place] += tokens
            return whole[place][:, start : start + tokens]

        return take


@dataclass
class Errors:
    """Gather the errors of hidden states by place, token by token: three float64 numbers each."""

    squares: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, place: int, expected: Tensor, found: Tensor) -> None:
        """Compare states (1, tokens, hidden) with those of the reference."""
        a, b = expected[0].double(), found[0].to(expected.device).double()
        own, other, both = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
        cosine = torch.where(own + other > 0, both / (own * other).sqrt().clamp_min(1e-300), 1.0)
        self.squares[place].append(torch.stack([((b - a) ** 2).sum(-1), own, cosine]).cpu())

    def at(self, place: int) -> StateError:
        """Return the error at a place over all tokens so far."""
        difference, own, cosine = torch.cat(self.squares[place], dim=1)
        ratios = torch.where(difference > 0, difference / own.clamp_min(1e-300), 0.0).sqrt()
        overall = difference.sum() / own.sum().clamp_min(1e-300)
        return StateError(float(overall.sqrt()), float(ratios.median()), float(cosine.mean()))


@contextmanager
def watched(model: nn.Module, seen: Seen) -> Iterator[None]:
    """Call ``seen`` within the body with what each of the model's blocks leaves, and what the first one reads."""
    blocks = [block for _, block in named_blocks(model)]

    def read(_: nn.Module, positional: Sequence[Any], named: Mapping[str, Any]) -> None:
        seen(0, _read_by_block(positional, named))

    def left(place: int, _: nn.Module, __: Any, output: Any) -> None:
        seen(place, output[0] if isinstance(output, tuple) else output)

    handles = [blocks[0].register_forward_pre_hook(read, with_kwargs=True)]
    handles += [block.register_forward_hook(partial(left, place)) for place, block in enumerate(blocks, 1)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def fed(model: nn.Module, states: States) -> Iterator[None]:
    """Let each block of the model read the reference's states instead of its predecessor's within the body."""
    take = states.reader()

    def feed(place: int, _: nn.Module, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own = _read_by_block(positional, named)
        given = take(place, own.shape[1]).to(own)
        return ((given, *positional[1:]), named) if positional else (positional, {**named, ARGUMENT: given})

    handles = [
        block.register_forward_pre_hook(partial(feed, place), with_kwargs=True)
        for place, (_, block) in enumerate(named_blocks(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def comparing(states: States, errors: Errors) -> Seen:
    """Return what compares a model's states with the reference's, as ``watched`` shows them."""
    take = states.reader()
    return lambda place, found: errors.add(place, take(place, found.shape[1]), found)


def _read_by_block(positional: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    states: Tensor = positional[0] if positional else named[ARGUMENT]
    return states
