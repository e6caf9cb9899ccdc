"""Compare the forward that decodes, of a few rows, with the one that is scored, of many: layer by layer.

A layer may have a kernel for few rows, which no perplexity ever runs: scoring would look perfect while it generates
nonsense. Inputs are real ones, kept during one forward of a text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.layers.contract import is_compressed, matrices
from squeeze.models import architecture

FEW = (1, 6)  # rows: of a decoding step, at batch sizes of one and of several
MANY = 48  # rows, copies of those few: what depends on the range of a whole call is the same in both
ROUNDINGS = 12  # of the dtype, relative to an output and the mean square of its row: honest layers show one to four
SUMMED = 1e-4  # what sums in another order may make of float32


@dataclass(frozen=True)
class Difference:
    """Hold the largest difference that few and many rows make to an output of a layer.

    relative: |few - many| / (|many| + the root mean square of the token's outputs); infinite where just one of both is
    not a number. layer: the full name of the worst. bound: what rounding explains.
    """

    relative: float
    layer: str
    bound: float

    def figures(self) -> dict[str, Any]:
        """Return the sample names and values; a difference without bounds has no value."""
        return {"decode_difference": self.relative if math.isfinite(self.relative) else None}

    def mismatches(self) -> list[str]:
        """Return what to say of the difference; nothing where it is rounding."""
        if self.relative <= self.bound:
            return []
        return [
            f"decode != score: {self.layer} gives few rows {self.relative:.2g} from many, rounding {self.bound:.2g}"
        ]


@torch.inference_mode()
def difference(model: nn.Module, token_ids: Tensor) -> Difference:
    """Return the worst difference of all layers within the blocks, and of compressed ones without.

    token_ids: (1, tokens) int64, of real text; a layer that no token reaches is left out.
    """
    layers = watched(model)
    found = {name: of_layer(layers[name], rows) for name, rows in inputs(model, layers, token_ids).items()}
    worst = max(found, key=lambda name: found[name], default="")
    bound = max(ROUNDINGS * torch.finfo(architecture.dtype(model)).eps, SUMMED)
    return Difference(found.get(worst, 0.0), worst, bound)


def watched(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers by full name that stand for a matrix: all within the blocks, compressed ones elsewhere."""
    within = dict(matrices(model))
    return {name: layer for name, layer in model.named_modules() if name in within or is_compressed(layer)}


def inputs(model: nn.Module, layers: dict[str, nn.Module], token_ids: Tensor) -> dict[str, Tensor]:
    """Return the inputs of a few tokens, (rows, in_features), by layer, from one forward of a text."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and arguments[0].is_floating_point() and name not in kept:
                rows = arguments[0].reshape(-1, arguments[0].shape[-1])
                kept[name] = rows[:: max(1, len(rows) // max(FEW))][: max(FEW)].clone()

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        model(input_ids=token_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def of_layer(layer: nn.Module, rows: Tensor) -> float:
    """Return the largest relative difference of one layer; rows: (rows, in_features)."""
    differences = []
    for few in (rows[:count] for count in FEW):
        many = few.repeat(-(-MANY // len(few)), 1)
        differences.append(_relative(layer(few), layer(many)[: len(few)]))
    return max(differences)


def _relative(few: Tensor, many: Tensor) -> float:
    few, many = few.float(), many.float()
    scale = many.abs() + many.square().mean(dim=-1, keepdim=True).sqrt()
    away = torch.where(few == many, 0, (few - many).abs() / scale)
    away = torch.where(few.isnan() & many.isnan(), 0, away)
    return float(away.nan_to_num(math.inf, math.inf).max())
