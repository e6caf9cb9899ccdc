"""Tell of a layer that stands in several blocks once, with all that it reads in any of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from squeeze.models import architecture
from squeeze.techniques.contract import InputStatistics, Stop


def each_once(model: nn.Module, stops: Iterable[Stop]) -> Iterator[Stop]:
    """Yield the stops of a walk; a layer of several places stands in the last alone, with the statistics of all.

    So whoever replaces layers replaces each once, by all the inputs that it has to serve. Layers that read the same
    tensors share one statistics, as before. In a sequential walk its earlier places have run with it as it was.
    """
    last = _last_names(model)
    if len(set(last.values())) == len(last):
        yield from stops
        return
    waiting: dict[str, list[InputStatistics]] = {}
    for block_name, block, statistics in stops:
        ready: dict[str, InputStatistics] = {}
        merged: dict[tuple[int, ...], InputStatistics] = {}
        for name, own in statistics.items():
            full = f"{block_name}.{name}"
            waiting.setdefault(last[full], []).append(own)
            if last[full] == full:
                parts = waiting.pop(full)
                key = tuple(map(id, parts))
                if key not in merged:
                    merged[key] = united(parts)
                ready[name] = merged[key]
        yield block_name, block, ready


def united(parts: Sequence[InputStatistics]) -> InputStatistics:
    """Return the statistics of all inputs that these are of: means weigh each token alike."""
    if len(parts) == 1:
        return parts[0]
    tokens = sum(part.tokens for part in parts)
    shares = [part.tokens / max(tokens, 1) for part in parts]
    return InputStatistics(
        torch.stack([share * part.hessian for share, part in zip(shares, parts, strict=True)]).sum(dim=0),
        torch.stack([share * part.mean_abs for share, part in zip(shares, parts, strict=True)]).sum(dim=0),
        torch.stack([part.low for part in parts]).amin(dim=0),
        torch.stack([part.high for part in parts]).amax(dim=0),
        tokens,
    )


def _last_names(model: nn.Module) -> dict[str, str]:
    """Map each full name of a linear layer within the blocks to the last of those that it has."""
    layers = architecture.block_linears(model)
    last = {id(layer): name for name, layer in layers.items()}
    return {name: last[id(layer)] for name, layer in layers.items()}
