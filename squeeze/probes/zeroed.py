"""Count the entries of layers' inputs that are set to zero before they are multiplied, while a text is read.

A layer's threshold is its word. It is believed where the layer's output stays the same, bit for bit, when the entries
that lie below it were zero before: so they had no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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

    unread: bytes of weights that a decoding step leaves out, in layers that skip columns.
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


@torch.inference_mode()
def zeroed(model: nn.Module, text: Tensor) -> Zeroed:
    """Count while a model that is ready to run reads a text, (1, tokens) int64; a layer counts by its weights."""
    layers = {name: module for name, module in model.named_modules() if _has_threshold(module)}
    if not layers:
        return Zeroed()
    shares = _shares(model, layers, text)
    weights = {name: logical_weights(layer) for name, layer in matrices(model)}
    within = {name: sum(count for own, count in weights.items() if own.startswith(f"{name}.")) for name in layers}
    made = sum(within[name] * share for name, share in shares.items())
    unread = sum(share * _skippable(layers[name]) for name, share in shares.items())
    return Zeroed(made / sum(weights.values()), round(unread))


def _skippable(layer: Any) -> int:
    """Return the bytes of the weights whose columns a layer skips; 0 where it skips none."""
    base = getattr(layer, "base", None)
    return int(base.weight.nbytes) if isinstance(base, ColumnsLinear) and base.skips else 0


def _has_threshold(module: nn.Module) -> bool:
    return is_described(module) and hasattr(module, "threshold")  # activation functions of torch may have one, too


def _shares(model: nn.Module, layers: Mapping[str, Any], text: Tensor) -> dict[str, float]:
    """Return the share of the inputs' entries that each layer sets to zero; 0 where it only says so."""
    shares: dict[str, float] = {}

    def look(name: str) -> Any:
        def hook(layer: Any, arguments: tuple[Any, ...]) -> None:
            shares[name] = float((arguments[0].abs() <= layer.threshold).float().mean())

        return hook

    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    try:
        rows = decoding.inputs(model, dict(layers), text)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: share if _unread(layers[name], rows[name]) else 0.0 for name, share in shares.items()}


def _unread(layer: Any, rows: Tensor) -> bool:
    """Tell whether entries at or below the threshold have no part in the output; rows: (n, in_features)."""
    without = torch.where(rows.abs() <= layer.threshold, 0, rows)
    return torch.equal(layer(rows), layer(without))
