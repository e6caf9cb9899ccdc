"""Hold the matrix that a compressed layer shows against the one it multiplies with.

What ``dequantize`` returns is a layer's word. Its forward is sent unit vectors, which show columns of the matrix that
really multiplies, and dense random vectors, which no layer could tell from a model's. All sparsity and levels are
counted in matrices that have passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from squeeze.layers.contract import is_compressed

COLUMNS = 8  # of each matrix, evenly spread
RANDOM = 4  # vectors
MOST_ROWS = 2**16  # of output compared in each column: a head has one for each token
ROUNDED = 0.05  # of the root mean square of a column: kernels keep scales and offsets in 16 bits
STRAY = 0.01  # of the weights that may lie beyond that
RELATIVE = 0.08  # error of the products with random vectors: kernels of heavy-tailed weights in 4 bits make 0.02 of it
# Times a quarter of the largest input that was seen. Inputs that are rounded to a fixed grid show a matrix well where
# they are neither a few steps of it nor beyond its ends, of which one may be near zero; the first size at which forward
# and matrix agree counts. Others agree at once.
SIZES = tuple(sign * 2.0**power for power in sorted(range(-14, 15), key=abs) for sign in (1, -1))
SMALL, LARGE = 0.5, 2.0  # what rounding may make of a unit vector, as a factor


@dataclass(frozen=True)
class Agreement:
    """Hold how far a layer's forward is from its matrix.

    stray: share of the compared weights that differ by more than rounding; relative: error of random products.
    """

    stray: float
    relative: float

    @property
    def holds(self) -> bool:
        """Tell whether rounding explains the differences."""
        return self.stray <= STRAY and self.relative <= RELATIVE


def mismatches(stored: nn.Module, running: nn.Module, inputs: Mapping[str, Tensor]) -> list[str]:
    """Return the compressed layers whose forward is not a product with the matrix that they show, in words.

    stored: the model as it is stored, whose layers show their matrices; running: the same, ready to run. inputs: of
    some layers, a few rows as the model gives them, (rows, in_features).
    """
    found = []
    for name, layer in running.named_modules():
        if not is_compressed(layer):
            continue
        shown = stored.get_submodule(name).dequantize()  # type: ignore[operator]
        if shown.numel() != layer.in_features * layer.out_features:
            found.append(
                f"{name} shows {shown.numel():,} weights, says it has {layer.in_features * layer.out_features:,}"
            )
        seen = agreement(running.get_submodule(name), shown, inputs.get(name))
        if not seen.holds:
            found.append(
                f"dequantize != forward: {name} multiplies with other weights than it shows ({seen.stray:.0%} of them,"
                f" expected {STRAY:.0%} at the most; products {seen.relative:.1%} apart, expected {RELATIVE:.0%})"
            )
    return found


@torch.inference_mode()
def agreement(layer: nn.Module, shown: Tensor, rows: Tensor | None) -> Agreement:
    """Return how far a layer's products are from those with ``shown``, (out_features, in_features)."""
    dtype, device = (shown.dtype, shown.device) if rows is None else (rows.dtype, rows.device)
    largest = 1.0 if rows is None else _largest(rows)
    found = []
    for size in SIZES:
        try:
            found.append(_agreement(layer, shown, size * largest / 4, dtype, device))
        except RuntimeError:  # of shapes that do not fit
            return Agreement(1.0, math.inf)
        if found[-1].holds:
            return found[-1]
    return min(found, key=lambda each: (each.stray, each.relative))


def _agreement(layer: nn.Module, shown: Tensor, size: float, dtype: torch.dtype, device: torch.device) -> Agreement:
    width = shown.shape[1]
    columns = torch.linspace(0, width - 1, min(COLUMNS, width)).round().long()
    vectors = torch.zeros((1 + len(columns) + RANDOM, width))
    vectors[1 + torch.arange(len(columns)), columns] = size
    vectors[1 + len(columns) :] = size * torch.rand((RANDOM, width), generator=torch.Generator().manual_seed(width))
    vectors = vectors.to(device, dtype)
    every = -(-len(shown) // MOST_ROWS)
    outputs = layer(vectors).float()[:, ::every]
    matrix = shown[::every].float().to(device)
    nothing, units, products = outputs[0], outputs[1 : 1 + len(columns)], outputs[1 + len(columns) :]
    rounding = torch.finfo(dtype).eps
    expected = vectors[1 : 1 + len(columns)].float() @ matrix.T
    stray = _stray(units - nothing, expected, rounding * (nothing.abs() + units.abs()))
    expected = vectors[1 + len(columns) :].float() @ matrix.T
    beyond = ((products - nothing - expected).abs() - rounding * (nothing.abs() + products.abs())).clamp(min=0)
    return Agreement(stray, _norm(beyond) / max(_norm(expected), torch.finfo(torch.float32).tiny))


def _stray(found: Tensor, expected: Tensor, rounding: Tensor) -> float:
    """Return the share of weights beyond rounding; found, expected, rounding: (columns, out_features).

    Each column may be a multiple of what is expected: what rounding made of its unit vector.
    """
    energy = expected.square().sum(dim=1, keepdim=True)
    factor = ((found * expected).sum(dim=1, keepdim=True) / energy).nan_to_num(1.0).clamp(SMALL, LARGE)
    tolerated = ROUNDED * expected.square().mean(dim=1, keepdim=True).sqrt() * factor + rounding
    beyond = ~((found - factor * expected).abs() <= tolerated)  # so that what is no number is beyond
    return float(beyond.float().mean())


def _largest(rows: Tensor) -> float:
    """Return the input of the largest magnitude, with its sign; 1 where all are zero."""
    values = rows.flatten().float()
    return float(values[values.abs().argmax()]) or 1.0


def _norm(values: Tensor) -> float:
    return float(values.norm())
