"""Walk a model block by block with calibration text, and collect statistics of the inputs of its linear layers.

All windows' hidden states are held once, in the model's dtype, and go through one block at a time; beside them and
the model there is never more than one block's statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.models.architecture import linears, named_blocks, weight
from squeeze.models.block_calls import Call, before_first_block, block_calls
from squeeze.models.settings import bfloat16_products
from squeeze.techniques.contract import InputStatistics, Stop

BATCH = 2048  # tokens that go through a block at a time: few enough to stay in the cache, enough for fast products
PANEL = 256  # rows of a Hessian computed at a time; it is symmetric, so each panel starts at its diagonal


def walk(model: nn.Module, token_ids: torch.Tensor, *, sequential: bool = False) -> Iterator[Stop]:
    """Yield (full name, block, statistics of its linear layers' inputs by relative name) for each block, in order.

    token_ids: (samples, window) int64, unpadded. Layers that read the same tensor (q, k and v) share one statistics.
    sequential: the inputs of a block come from its predecessors as the consumer has left them, at the price of running
        each block twice (at first only as far as its last linear layer's inputs); otherwise they come from the model as
        it was.
    Raises SqueezeError where there are no tokens.
    """
    if token_ids.numel() == 0:
        raise SqueezeError("calibration has no tokens, expected at least one window; name a calibration with a corpus")
    token_ids = token_ids.to(next(model.parameters()).device)
    batch = max(BATCH // token_ids.shape[1], 1)
    calls = block_calls(model, token_ids[:1])
    hidden = before_first_block(model, token_ids, batch)
    for name, block in named_blocks(model):
        run = partial(_run, block, calls[name], hidden, batch)
        with observed_inputs(block, leave=sequential) as seen:
            run(keep=not sequential)
        shared = {accumulator: accumulator.statistics() for accumulator in set(seen.values())}
        yield name, block, {layer: shared[accumulator] for layer, accumulator in seen.items()}
        if sequential:
            with _widened(block):
                run(keep=True)


class AllSeen(Exception):  # noqa: N818 - control flow, not an error
    """Signal that all linear layers of the block have been called; what it would still compute is not wanted."""


@contextmanager
def observed_inputs(block: nn.Module, *, leave: bool = False) -> Iterator[dict[str, _Accumulator]]:
    """Accumulate, while the context lasts, what the linear layers of ``block`` read, by their relative names.

    leave: whether a forward raises AllSeen as soon as the last of them has its inputs, before it multiplies with them.
    """
    seen: dict[str, _Accumulator] = {}
    current: list[tuple[torch.Tensor, _Accumulator]] = []  # the tensors of this forward; held, so that none is reused
    layers = linears(block)
    awaited = set(layers)

    def forget(*_: Any) -> None:
        current.clear()
        awaited.update(layers)

    def observe(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        known = next((accumulator for tensor, accumulator in current if tensor is x), None)
        if known is None:
            known = seen.get(name) or _Accumulator(x.shape[-1], x.device)
            known.add(x)
            current.append((x, known))
        seen.setdefault(name, known)
        awaited.discard(name)
        if leave and not awaited:
            forget()
            raise AllSeen

    handles = [layer.register_forward_pre_hook(partial(observe, name)) for name, layer in layers.items()]
    handles += [block.register_forward_pre_hook(forget), block.register_forward_hook(forget)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            seen.setdefault(name, _Accumulator(weight(layer).shape[1], weight(layer).device))


class _Accumulator:
    """Accumulate sums over the inputs of one layer (or of several that share them)."""

    def __init__(self, features: int, device: torch.device):
        self.products = torch.zeros((features, features), device=device)
        self.absolute = torch.zeros(features, device=device)
        self.low, self.high = torch.zeros_like(self.absolute), torch.zeros_like(self.absolute)
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        # A Hessian summed in bfloat16 is not positive definite. The products alone of bfloat16 inputs are exact in
        # float32, so that the fast bfloat16 instructions lose nothing where they add in float32.
        rows = x.reshape(-1, x.shape[-1])
        exact = rows.dtype == torch.bfloat16 and rows.device.type == "cpu"
        rows = rows.float()
        with bfloat16_products() if exact else nullcontext():
            for start in range(0, rows.shape[1], PANEL):
                panel = slice(start, start + PANEL)
                self.products[panel, start:].addmm_(rows[:, panel].T, rows[:, start:])
        self.absolute += rows.abs().sum(dim=0)
        self.low, self.high = torch.minimum(self.low, rows.amin(dim=0)), torch.maximum(self.high, rows.amax(dim=0))
        self.tokens += rows.shape[0]

    def statistics(self) -> InputStatistics:
        for start in range(0, len(self.products), PANEL):
            panel, below = slice(start, start + PANEL), slice(start + PANEL, None)
            self.products[below, panel] = self.products[panel, below].T
        count = max(self.tokens, 1)
        return InputStatistics(self.products.div_(count), self.absolute.div_(count), self.low, self.high, self.tokens)


@contextmanager
def _widened(block: nn.Module) -> Iterator[None]:
    """Dequantize weights once while the context lasts, for layers that would do so at every call."""
    layers: list[Any] = [m for m in block.modules() if hasattr(m, "dequantize") and not m.compute_real]
    for layer in layers:
        layer.forward = partial(F.linear, weight=layer.dequantize(), bias=layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def _run(block: nn.Module, call: Call, hidden: torch.Tensor, batch: int, *, keep: bool) -> None:
    """Run a block on all hidden states, as far as it goes; with ``keep``, replace them with its outputs."""
    for windows in torch.split(hidden, batch):
        with suppress(AllSeen):
            output = block(windows, *call.positional, **call.named)
            if keep:
                windows.copy_(output[0] if isinstance(output, tuple) else output)
