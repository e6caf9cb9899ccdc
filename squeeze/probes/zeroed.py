"""Count the entries of layers' inputs that are set to zero before they are multiplied, while a text is read.

A layer's threshold is its word. It is believed where the layer's output stays the same, bit for bit, when the entries
that lie below it were zero before: so they had no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.layers.contract import is_described, matrices
from squeeze.layers.thresholded import ColumnsLinear
from squeeze.probes import decoding
from squeeze.probes.recount import logical_weights

CLAIM = "input_sparsity"
TOLERANCE = 0.03  # of the entries: another text, and layers before that have thresholds, too


@dataclass(frozen=True)
class Zeroed:
    """Hold what was counted of a model. share: of the blocks' multiplications that meet a zero which a layer has made.

    unread: bytes of weights that an eager decoding step leaves out on average, in layers that skip columns.
    """

    share: float = 0.0
    unread: int = 0

    def figures(self) -> dict[str, float]:
        """Return the sample names and values; nothing where no layer makes zeros."""
        return {CLAIM: self.share} if self.share else {}

    def mismatches(self, claims: Mapping[str, Any]) -> list[str]:
        """Return the claim that does not hold, with both numbers."""
        claimed = claims.get(CLAIM, 0.0)
        if self.share >= claimed - TOLERANCE:
            return []
        return [f"claimed {claimed:.1%} zeros in the layers' inputs, found {self.share:.1%}"]


@dataclass(frozen=True)
class _Met:
    """Hold what a layer was seen to do. share: of its inputs' entries, set to zero. unread: bytes, of one token."""

    share: float
    unread: float


@torch.inference_mode()
def zeroed(model: nn.Module, text: Tensor) -> Zeroed:
    """Count while a model that is ready to run reads a text, (1, tokens) int64; a layer counts by its weights."""
    modules = model.named_modules(remove_duplicate=False)  # a matrix that stands in several places counts in each
    layers: dict[str, Any] = {name: module for name, module in modules if _has_threshold(module)}
    if not layers:
        return Zeroed()
    met = _met(model, layers, text)
    weights = {name: logical_weights(layer) for name, layer in matrices(model)}
    made = sum(count * _share_at(name, met) for name, count in weights.items())
    unread = {layers[name]: each.unread for name, each in met.items()}  # once, as its bytes are counted in the model
    return Zeroed(made / sum(weights.values()), round(sum(unread.values())))


def _share_at(matrix: str, met: Mapping[str, _Met]) -> float:
    """Return the share of zeros that the matrix of this name meets; of several thresholds around it, the most."""
    return max((each.share for name, each in met.items() if matrix.startswith(f"{name}.")), default=0.0)


def _unread_bytes(layer: Any, zero: Tensor) -> float:
    """Return the bytes of the columns that one token leaves out, on average; zero: (..., in_features), where it is.

    Tokens of too few zeros are multiplied densely, whatever the others have.
    """
    base = getattr(layer, "base", None)
    if not isinstance(base, ColumnsLinear):
        return 0.0
    zeros: list[int] = zero.flatten(0, -2).sum(dim=-1).tolist()
    left_out = sum(count for count in zeros if base.leaves_out(base.in_features - count))
    return base.weight.nbytes * left_out / (base.in_features * len(zeros))


def _has_threshold(module: nn.Module) -> bool:
    return is_described(module) and hasattr(module, "threshold")  # activation functions of torch may have one, too


def _met(model: nn.Module, layers: Mapping[str, Any], text: Tensor) -> dict[str, _Met]:
    """Return what each layer that was reached does; nothing where it only says so."""
    calls: dict[str, list[_Met]] = {}  # of a layer in several places one for each

    def look(name: str) -> Any:
        def hook(layer: Any, arguments: tuple[Any, ...]) -> None:
            zero = arguments[0].abs() <= layer.threshold
            if zero.numel():  # else no token reached it
                found = _Met(float(zero.float().mean()), _unread_bytes(layer, zero))
                calls.setdefault(name, []).append(found)

        return hook

    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    try:
        rows = decoding.inputs(model, dict(layers), text)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: _Met(fmean(each.share for each in found), fmean(each.unread for each in found))
        for name, found in calls.items()
        if _no_part(layers[name], rows[name])
    }


def _no_part(layer: Any, rows: Tensor) -> bool:
    """Tell whether entries at or below the threshold have no part in the output; rows: (n, in_features)."""
    without = torch.where(rows.abs() <= layer.threshold, 0, rows)
    return torch.equal(layer(rows), layer(without))
