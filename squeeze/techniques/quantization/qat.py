"""QAT: train the weights while the forward already sees them rounded, so that they settle where rounding does no harm.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv:1712.05877), section 3: simulated quantization in the forward, float weights in the backward. Rounding has no
useful derivative; the straight-through estimator takes it for the identity (Bengio, Leonard, Courville 2013,
arXiv:1308.3432, section 4). The teacher is the model itself before any rounding, as in LLM-QAT (Liu et al. 2023,
arXiv:2305.17888): no label is read, and on the training text there is nothing to be learned that it did not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid
from squeeze.layers.contract import float_linears
from squeeze.layers.master_weights import MasterLinear, same_tensors
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import divergence
from squeeze.techniques.quantization.lsq import LearnedStep
from squeeze.techniques.training_loop import Plan, train

BITS = (8, 4, 3, 2)


@dataclass(frozen=True)
class QAT:
    """All linear layers of the blocks are trained and rounded; embeddings, head, norms and biases stay as they are.

    bits: 8, 4, 3 or 2. group_size, symmetric: the grid, as for ``rtn``.
    learned_step: whether a group's step is learned, too (LSQ); otherwise it follows its weights, as ``rtn`` fits it.
    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    temperature: at which next-token distributions are compared with the teacher's.
    """

    bits: int
    group_size: int | None
    symmetric: bool
    learned_step: bool
    training_steps: int
    windows: int
    learning_rate: float
    temperature: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Raises Unsupported for other bits, a group size that does not fit, and a model without a head."""
        if self.bits not in BITS:
            raise Unsupported(f"qat has no {self.bits}-bit codes; bits that work: {', '.join(map(str, BITS))}")
        model = subject.model
        architecture.head(model)
        layers = float_linears(model)
        affine.check_group_size(self.group_size, [architecture.weight(layer).shape[1] for layer in layers.values()])
        teacher = same_tensors(model)
        dtype = architecture.dtype(model)
        masters = {name: MasterLinear(layer, self._rounding(layer)) for name, layer in layers.items()}
        for name, master in masters.items():
            architecture.replace(model, name, master)
        train(
            [parameter for master in masters.values() for parameter in master.parameters()],
            partial(divergence, model, teacher, temperature=self.temperature),
            calibration.token_ids,
            Plan(self.training_steps, self.windows, self.learning_rate),
            title=f"qat, {self.bits} bits",
            workplace=calibration.workplace,
        )
        for name, master in masters.items():
            architecture.replace(model, name, packed(master, dtype))
        return subject.claiming(
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            training_tokens=self.training_steps * self.windows * calibration.token_ids.shape[1],
        )

    def _rounding(self, layer: nn.Module) -> nn.Module:
        weight = architecture.weight(layer)
        group_size = self.group_size or weight.shape[1]
        if self.learned_step:
            return LearnedStep(weight, self.bits, group_size, self.symmetric)
        return FittedStep(self.bits, group_size, self.symmetric, weight.dtype)


class FittedStep(nn.Module):
    """Rounding to the grid that ``rtn`` would fit to the weights as they are now; its gradient is the identity."""

    def __init__(self, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.bits, self.group_size, self.symmetric, self.dtype = bits, group_size, symmetric, dtype

    def grid(self, weight: torch.Tensor) -> AffineGrid:
        """The grid as it is stored; weight: (out_features, in_features) float32."""
        return affine.fit(weight.detach().to(self.dtype), self.bits, self.group_size, self.symmetric)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(out_features, in_features) float32 -> the values on the grid, in the model's dtype."""
        values: torch.Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            weight, self.grid(weight), self.dtype
        )
        return values


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, weight: torch.Tensor, grid: AffineGrid, dtype: torch.dtype) -> torch.Tensor:
        return grid.dequantize(grid.quantize(weight), dtype)

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0].float(), None, None


def packed(master: MasterLinear, dtype: torch.dtype) -> QuantizedLinear:
    """The layer that computes, from packed codes, what the trained one computes in its forward."""
    weight = master.weight.detach()
    grid: AffineGrid = master.view.grid(weight)  # type: ignore[operator]
    return QuantizedLinear.of(grid.quantize(weight), grid, master.bias, dtype)
