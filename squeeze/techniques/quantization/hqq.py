"""Optimize zero points so that few weights are far off (HQQ), by half-quadratic splitting and without data.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog). Errors
are measured in an l_p norm with p < 1, which lets a few large ones be and keeps the many small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid
from squeeze.layers.contract import float_linears
from squeeze.layers.quantized import put
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.quantization import vocabulary

P, BETA, KAPPA, ITERATIONS = 0.7, 10.0, 1.01, 20  # the authors' defaults
WHOLE_START = 4  # bits at which their library begins with rounded zero points (its ``round_zero``)


@dataclass(frozen=True)
class HQQ:
    """Quantize all linear layers of the blocks; norms stay as they are.

    bits: 8, 4, 3 or 2. group_size: neighbours in an output row that share a scale and a zero point; None: all.
    embed_bits: of embedding and head, as for ``rtn``: rounded to nearest, on a symmetric grid of least squared error.

    Zero points are real numbers, stored in 16 bits. Weights that already lie on a grid of scale and minimum, as those
    of the default model do, are met too well by it in small groups (see ``squeeze.models.prequantized``): the claim
    ``symmetric=False`` lets squeeze mark such cells.
    """

    bits: Literal[8, 4, 3, 2]
    group_size: int | None
    embed_bits: Literal[8, 4] | None = None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject.

        Raises Unsupported for other bits, and for a group size that does not divide each layer's width.
        """
        model = subject.model
        names = float_linears(model)
        affine.check("hqq", self.bits, self.group_size, map(model.get_submodule, names))
        vocabulary.check(model, self.embed_bits, self.group_size)
        for name in names:
            weight = architecture.weight(model.get_submodule(name))
            grid = solve(weight, self.bits, self.group_size or weight.shape[1])
            put(model, name, grid.quantize(weight), grid)
        claims = vocabulary.quantize(model, self.embed_bits, self.group_size)
        left = subject.without("sparsity")  # zero points lie between codes: no code stands for zero
        return left.claiming(bits=self.bits, group_size=self.group_size, symmetric=False, **claims)


def solve(weight: torch.Tensor, bits: int, group_size: int) -> AffineGrid:
    """Return each group's grid, its real zero point z best in sum |W - Q^-1(Q(W))|^p; weight: (out, in).

    Scales are those of the groups' ranges and stay. W_e, the errors that are let be, and z take turns:
        W_e = shrink(W - Q^-1(Q(W)), beta)     (sub-problem 1, its generalised soft threshold)
        z = mean(Q(W) - (W - W_e) / s)         (sub-problem 2)
    while beta grows. At 4 bits the first z is a whole number, as in the authors' library; that lowered the default
    model's perplexity on calibration text by 3 %. Of all z that came up each group keeps its best; the authors stop all
    groups when their mean error rises.
    """
    groups = weight.float().reshape(len(weight), -1, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = affine.stored_scales((high - low) / (2**bits - 1), weight.dtype)
    start = -low / scales.float()

    def rounded(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = AffineGrid(bits, scales, z.to(scales.dtype))
        codes = grid.quantize(weight)
        return codes.view_as(groups), groups - grid.dequantize(codes, torch.float32).view_as(groups)

    best = start.round()  # where rounding to nearest has it: no group ends up worse
    least = rounded(best)[1].abs().pow(P).sum(-1)
    z, beta = best if bits == WHOLE_START else start, BETA
    for _ in range(ITERATIONS):
        codes, error = rounded(z)
        objective = error.abs().pow(P).sum(-1)
        best, least = torch.where(objective < least, z, best), torch.minimum(objective, least)
        z = (codes - (groups - shrink(error, beta)) / scales.float()[..., None]).mean(-1)
        beta *= KAPPA
    return AffineGrid(bits, scales, best.to(scales.dtype))


def shrink(error: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the generalised soft threshold sign(x) max(|x| - |x|^(p-1) / beta, 0)."""
    return error.sign() * (error.abs() - error.abs().pow(P - 1) / beta).clamp(min=0)
