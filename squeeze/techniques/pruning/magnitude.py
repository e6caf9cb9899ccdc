"""Prune by magnitude: set the weights nearest to zero to zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.pruning.selection import lowest, prunable

INFINITE = 0x7F800000  # the bits of a float32: those of nonnegative numbers are in the same order as the numbers


@dataclass(frozen=True)
class Magnitude:
    """Zero the weights that are lowest in |W_ij| (Han et al. 2015, arXiv:1506.02626, section 3.1); no retraining.

    sparsity: share of the weights of the blocks' linear layers that become zero, in [0, 1).
    run: weights of a row that are compared with each other: None, all of a layer; 4 with sparsity 0.5, the 2:4 pattern.
    scope: "layer", the same share of each layer; "global", those below one threshold for all layers (Blalock et al.
    2020, arXiv:2003.03033), so that layers of small weights lose most.
    """

    sparsity: float
    run: int | None = None
    scope: Literal["layer", "global"] = "layer"

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject.

        Raises Unsupported as ``selection.prunable`` does, for another scope, and for a global one with runs.
        """
        if self.scope not in ("layer", "global"):
            raise Unsupported(f"magnitude has no scope {self.scope!r}; expected 'layer' or 'global'")
        if self.scope == "global" and self.run is not None:
            raise Unsupported(
                f"a global threshold leaves no pattern of {self.run} weights; use run=null or scope=layer"
            )
        model = subject.model
        names = prunable(model, self.sparsity, self.run)
        shares = [self.sparsity] * len(names)
        if self.scope == "global":
            weights = [architecture.weight(model.get_submodule(name)) for name in names]
            shares = global_shares(weights, self.sparsity)
            del weights  # each can go as soon as it is pruned
        for name, share in zip(names, shares, strict=True):
            layer = model.get_submodule(name)
            pruned = self.prune(architecture.weight(layer), share)
            architecture.replace(model, name, SparseLinear.of(pruned, architecture.bias(layer)))
        return subject.without(*OF_CODES).claiming(sparsity=self.sparsity)

    def prune(self, weight: torch.Tensor, share: float) -> torch.Tensor:
        """Return the weight, (out_features, in_features), with this share of zeros."""
        scores = weight.abs().flatten()
        pruned = lowest(scores if self.run is None else scores.view(-1, self.run), share)
        return weight.masked_fill(pruned.view(weight.shape), 0)


def global_shares(weights: Sequence[torch.Tensor], sparsity: float) -> list[float]:
    """Return the share of each weight's elements that are among the lowest |W_ij| of all weights together.

    They are exactly round(sparsity * n) of all n; of those at the threshold, the ones of the first weights.
    """
    left = round(sparsity * sum(weight.numel() for weight in weights))
    threshold = _order_statistic(weights, left)
    below = [int((weight.abs() < threshold).sum()) for weight in weights]
    left -= sum(below)
    shares = []
    for weight, count in zip(weights, below, strict=True):
        taken = min(left, int((weight.abs() == threshold).sum()))
        left -= taken
        shares.append((count + taken) / weight.numel())
    return shares


def _order_statistic(weights: Sequence[torch.Tensor], count: int) -> float:
    """Return the least threshold that at least ``count`` of all |W_ij| do not exceed, without a copy of them all."""
    low, high = 0, INFINITE
    while low < high:
        middle = (low + high) // 2
        if sum(int((weight.float().abs() <= _float(middle)).sum()) for weight in weights) >= count:
            high = middle
        else:
            low = middle + 1
    return _float(low)


def _float(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
