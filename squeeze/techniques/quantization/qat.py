"""Train the weights while the forward already rounds them, so that they settle where rounding does no harm (QAT).

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv:1712.05877), section 3: simulated quantization in the forward, float weights in the backward. Rounding has no
useful derivative; the straight-through estimator takes it for the identity (Bengio, Leonard, Courville 2013,
arXiv:1308.3432, section 4). The teacher is the uncompressed model, as in LLM-QAT (Liu et al. 2023, arXiv:2305.17888):
no label is read, and on the training text there is nothing to be learned that it did not know. Where this is the first
step, it is a second model over the same tensors, which costs no memory; after other steps it is loaded once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid
from squeeze.layers.contract import float_linears
from squeeze.layers.master_weights import MasterLinear, same_tensors
from squeeze.layers.quantized import put
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import divergence
from squeeze.techniques.quantization import vocabulary
from squeeze.techniques.quantization.lsq import LearnedStep
from squeeze.techniques.training_loop import Plan, train


@dataclass(frozen=True)
class QAT:
    """Train and round all linear layers of the blocks; norms and biases stay as they are.

    bits: 8, 4, 3 or 2. group_size, symmetric: the grid, as for ``rtn``.
    learned_step: whether a group's step is learned, too (LSQ); otherwise it follows its weights, as ``rtn`` fits it.
    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    temperature: at which next-token distributions are compared with the teacher's.
    embed_bits: of embedding and head, as for ``hqq``; rounded when all has been trained.
    """

    bits: Literal[8, 4, 3, 2]
    group_size: int | None
    symmetric: bool
    learned_step: bool
    training_steps: int
    windows: int
    learning_rate: float
    temperature: float
    embed_bits: Literal[8, 4] | None = None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for other bits, a group size that does not fit, a model without a head, and a plan that
        cannot be.
        """
        model, plan = subject.model, Plan(self.training_steps, self.windows, self.learning_rate)
        architecture.head(model)
        names = float_linears(model)
        affine.check("qat", self.bits, self.group_size, map(model.get_submodule, names))
        vocabulary.check(model, self.embed_bits, self.group_size)
        # Whatever an earlier step has done to the model, it has claimed.
        teacher = calibration.baseline() if subject.claims else same_tensors(model)
        dtype = architecture.dtype(model)
        for name in names:
            layer = model.get_submodule(name)
            architecture.replace(model, name, MasterLinear(layer, self._rounding(layer)))
        parameters = [parameter for name in names for parameter in model.get_submodule(name).parameters()]
        train(
            parameters,
            partial(divergence, model, teacher, temperature=self.temperature),
            calibration.token_ids,
            plan,
            title=f"qat, {self.bits} bits",
            workplace=calibration.workplace,
            held_out=calibration.held_out,
        )
        trainable = sum(parameter.numel() for parameter in parameters)
        del teacher, parameters
        for name in names:
            weight, grid = trained(model.get_submodule(name))
            put(model, name, grid.quantize(weight), grid, dtype)
        claims = vocabulary.quantize(model, self.embed_bits, self.group_size)
        return subject.without("sparsity").claiming(  # zeros were trained, as all weights were
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            training_tokens=self.training_steps * self.windows * calibration.token_ids.shape[1],
            trainable_parameters=trainable,
            **claims,
        )

    def _rounding(self, layer: nn.Module) -> nn.Module:
        weight = architecture.weight(layer)
        group_size = self.group_size or weight.shape[1]
        if self.learned_step:
            return LearnedStep(weight, self.bits, group_size, self.symmetric)
        return FittedStep(self.bits, group_size, self.symmetric, weight.dtype)


class FittedStep(nn.Module):
    """Round to the grid that ``rtn`` would fit to the weights as they are now; the gradient is the identity."""

    def __init__(self, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.bits, self.group_size, self.symmetric, self.dtype = bits, group_size, symmetric, dtype

    def grid(self, weight: torch.Tensor) -> AffineGrid:
        """Return the grid as it is stored; weight: (out_features, in_features) float32."""
        return affine.fit(weight.detach().to(self.dtype), self.bits, self.group_size, self.symmetric)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Round (out_features, in_features) float32 -> the values on the grid, in the model's dtype."""
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


def trained(master: nn.Module) -> tuple[torch.Tensor, AffineGrid]:
    """Return the weight of a trained ``MasterLinear``, float32, and the grid that its forward rounds it to."""
    weight: torch.Tensor = master.weight.detach()  # type: ignore[operator]
    return weight, master.view.grid(weight)  # type: ignore[operator,union-attr]
