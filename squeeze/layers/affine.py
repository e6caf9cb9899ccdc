"""Map real weights to integer codes and back, with one scale and zero point per group of weights.

    q = round(r / s) + z,    r = s * (q - z)              (Jacob et al. 2018, arXiv:1712.05877, eq. 1)

Codes are unsigned, 0 to 2^b - 1. A group is ``group_size`` neighbours within an output row; per channel, the whole row.

symmetric   z = 2^(b-1), not stored. Two grids, by what s is:
            signed  s = -m / 2^(b-1), where m is the group's weight of largest magnitude, with its sign. So m has the
                    outermost code, 0, and all 2^b levels are used; s is negative where m is positive. This is the
                    choice of llama.cpp's Q4_0. On SmolLM2-135M-Instruct in groups of 64 its squared error is 24 %
                    lower at 4 bits, and 41 % at 3, than with s = max|r| / (2^(b-1) - 1), which leaves one code unused.
            absmax  s = max|r| / (2^(b-1) - 1/2), so that codes spread evenly over -max|r| to max|r|, as in the GPTQ
                    paper's code and the libraries after it. Both ends are missed by half a step: 0 is a code. The
                    squared error of ``signed`` is 16 % lower at 4 bits, and 24 % at 3.
asymmetric  s = (max(r, 0) - min(r, 0)) / (2^b - 1),  z = round(-min(r, 0) / s): zero is always exact.

Arithmetic is in float32, halves round to even. Scales are stored in 16 bits, and the *stored* scale makes the codes.
Stored bits a weight: b + 16 / group_size, and b / group_size more where zero points are stored (16 if they are real).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture

BITS = (8, 4, 3, 2)  # of a code
GRIDS = ("signed", "absmax")
SHARES = tuple(1 - i / 40 for i in range(25))  # of a group's range that may be kept, 1 to 0.4


@dataclass(frozen=True)
class AffineGrid:
    """Hold a scale and a zero point per group: r = s (q - z).

    scales: (out_features, groups), 16-bit floats. zeros: of the same shape, uint8, or floats of the scales' type where
    they lie between codes; None: 2^(bits-1) for all.
    """

    bits: int
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes: (out_features, in_features) floats -> uint8 of the same shape."""
        scaled = _grouped(weight.float(), self.scales) / self.scales.float().unsqueeze(-1)
        zeros = self._zeros(torch.float32)
        codes = scaled.add_(zeros).round_() if self.zeros_are_real else scaled.round_().add_(zeros)
        return codes.clamp_(0, 2**self.bits - 1).to(torch.uint8).flatten(-2)

    def dequantize(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return values s * (q - z): (out_features, in_features) uint8 -> ``dtype``, each product rounded once.

        Differences of 8-bit codes are exact in every float type, so no wider temporary is needed. (From a real zero
        point the difference is rounded too.)
        """
        steps = _grouped(codes, self.scales).to(dtype).sub_(self._zeros(dtype))
        return steps.mul_(self.scales.to(dtype).unsqueeze(-1)).flatten(-2)

    @property
    def zeros_are_real(self) -> bool:
        """Tell whether zero points lie between codes."""
        return self.zeros is not None and self.zeros.is_floating_point()

    def _zeros(self, dtype: torch.dtype) -> torch.Tensor | int:
        return 2 ** (self.bits - 1) if self.zeros is None else self.zeros.to(dtype).unsqueeze(-1)


def check(technique: str, bits: int, group_size: int | None, layers: Iterable[nn.Module], grid: str = GRIDS[0]) -> None:
    """Refuse bits and grids that there are none of, and groups that do not fill every row of the linear layers.

    technique: the name that the message begins with. group_size: None means one group per output row, which always
    fits. Raises Unsupported with the bits and grids that work, or see ``check_group_size``.
    """
    check_bits(technique, bits)
    if grid not in GRIDS:
        raise Unsupported(f"{technique} has no grid {grid!r}; expected {' or '.join(GRIDS)}")
    check_group_size(group_size, [architecture.weight(layer).shape[1] for layer in layers])


def check_bits(technique: str, bits: int) -> None:
    """Raise Unsupported, with the numbers of bits that work, unless codes of so many bits are among them."""
    if bits not in BITS:
        raise Unsupported(f"{technique} has no {bits}-bit codes; bits that work: {', '.join(map(str, BITS))}")


def fit(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool, grid: str = GRIDS[0]) -> AffineGrid:
    """Return the grid that just covers each group's range; weight: (out_features, in_features).

    group_size: a divisor of in_features. grid: "signed" or "absmax", where zero points are fixed (``symmetric``).
    """
    groups = weight.reshape(weight.shape[0], -1, group_size)
    if symmetric:
        low, high = groups.amin(-1).float(), groups.amax(-1).float()
        if grid == "absmax":
            scales = torch.maximum(high, -low) / (2 ** (bits - 1) - 0.5)
        else:
            scales = torch.where(high >= -low, high, low) / -(2 ** (bits - 1))
        return AffineGrid(bits, stored_scales(scales, weight.dtype), None)
    low, high = groups.amin(-1).clamp(max=0).float(), groups.amax(-1).clamp(min=0).float()
    scales = stored_scales((high - low) / (2**bits - 1), weight.dtype)
    zeros = (-low / scales.float()).round().clamp(0, 2**bits - 1)
    return AffineGrid(bits, scales, zeros.to(torch.uint8))


def search(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool, grid: str = GRIDS[0]) -> AffineGrid:
    """Return the grid whose rounded weights are nearest in the mean square: each group's range, shrunk by SHARES.

    The fewest-error range is narrower than the full one: a few large weights saturate, all others get finer steps.
    Shrinking a range about zero leaves its zero point where it is. All arguments are those of ``fit``.
    """
    widest = fit(weight, bits, group_size, symmetric, grid)
    best, least = widest.scales, torch.full_like(widest.scales, torch.inf, dtype=torch.float32)
    for share in SHARES:
        shrunk = AffineGrid(bits, stored_scales(widest.scales.float() * share, weight.dtype), widest.zeros)
        difference = shrunk.dequantize(shrunk.quantize(weight), torch.float32) - weight
        error = _grouped(difference, widest.scales).square().sum(-1)
        best, least = torch.where(error < least, shrunk.scales, best), torch.minimum(error, least)
    return AffineGrid(bits, best, widest.zeros)


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a model's stored scales: 16 bits that its own arithmetic, in ``dtype``, holds exactly."""
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def check_group_size(group_size: int | None, in_features: Sequence[int]) -> None:
    """Check that groups fill every row; None (one group per output row) always does.

    Raises Unsupported with the width that is not a multiple, and the group sizes that would divide all.
    """
    if group_size is None:
        return
    misfits = [width for width in in_features if group_size < 1 or width % group_size]
    if misfits:
        common = gcd(*in_features)
        fitting = ", ".join(str(size) for size in range(8, common + 1) if common % size == 0)
        raise Unsupported(
            f"group_size {group_size} does not divide in_features {misfits[0]} ({misfits[0]} % {group_size} != 0); "
            f"group sizes that divide every layer: {fitting or 'none above 7'}; null means one group per output row"
        )


def _grouped(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return values.reshape(*scales.shape, -1)


def stored_scales(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return scales as they are stored; a group of zeros (or too small for 16 bits) gets 1 and so codes of exact 0."""
    stored = scales.to(scale_dtype(dtype))
    return torch.where(stored == 0, torch.ones_like(stored), stored)
