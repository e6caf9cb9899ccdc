"""Learn the step of the grid with the weights, by a gradient that depends on where each weight lies in its step (LSQ).

Esser, McKinstry, Bablani, Appuswamy, Modha 2019, "Learned Step Size Quantization" (arXiv:1902.08153).
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import nn

from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid


class LearnedStep(nn.Module):
    """Round v -> v_hat = s (clip(round(v / s), -Q_N, Q_P)) (eq. 1 and 2), with one learned step s per group.

    Q_N and Q_P are what the codes leave on both sides of the zero point, which stays where it is. weight:
    (out_features, in_features), on which the first grid is fitted as ``rtn`` fits it. The paper starts from
    s = 2 <|v|> / sqrt(Q_P), and trains long enough to forget it; here, no row is to start worse than ``rtn``. AdamW
    evens out the scale that the paper gives the step's gradient (section 2.2), but for where gradients are shortened.
    """

    def __init__(self, weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> None:
        super().__init__()
        first = affine.fit(weight, bits, group_size, symmetric)
        self.bits, self.zeros, self.dtype = bits, first.zeros, weight.dtype
        self.step = nn.Parameter(first.scales.float())
        levels_above = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1  # the paper's Q_P, signed and unsigned
        self.gradient_scale = 1 / sqrt(group_size * levels_above)  # section 2.2

    def grid(self, weight: torch.Tensor) -> AffineGrid:  # noqa: ARG002 - the step has been learned
        """Return the grid as it is stored."""
        return AffineGrid(self.bits, affine.stored_scales(self.step.detach(), self.dtype), self.zeros)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Round (out_features, in_features) float32 -> the values on the grid, in the model's dtype."""
        values: torch.Tensor = _Rounding.apply(  # type: ignore[no-untyped-call]
            weight, self.step, self.grid(weight), self.gradient_scale, self.dtype
        )
        return values


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, _: torch.Tensor, grid: AffineGrid, gradient_scale: float, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.grid, ctx.gradient_scale = grid, gradient_scale
        return grid.dequantize(grid.quantize(weight), dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        grid: AffineGrid = ctx.grid
        shape = (*grid.scales.shape, -1)
        gradient = gradients[0].float().reshape(shape)
        place = weight.reshape(shape) / grid.scales.float().unsqueeze(-1)  # v / s
        zeros = 2 ** (grid.bits - 1) if grid.zeros is None else grid.zeros.float().unsqueeze(-1)
        least, most = -zeros, 2**grid.bits - 1 - zeros  # -Q_N, Q_P
        nearest = place.round().clamp(least, most)
        inside = (place > least) & (place < most)
        by_step = torch.where(inside, nearest - place, nearest)  # eq. 3
        step_gradient = (gradient * by_step).sum(-1) * ctx.gradient_scale
        return (gradient * inside).flatten(-2), step_gradient, None, None, None  # eq. 5 for the weight
