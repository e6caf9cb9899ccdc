"""Multiply with a matrix that several blocks share, and with what a block has of its own."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.layers.contract import dtype_name, linear
from squeeze.layers.factors import Factors


class SharedLinear(nn.Module):
    """Multiply as y = s * (W x) + B (A x) + b, where W is one layer that stands in several of these.

    scaled: whether there is s, a number for each output. rank: of B A; 0: there is none. dtype: of all of them, such as
    "bfloat16".

    ``common`` is W (out_features, in_features), a linear layer without a bias; ``scales`` is s (out_features,),
    ``change`` holds B and A, ``bias`` is b (out_features,). W, A and B are layers like any other of the block: steps
    that follow compress or train them, W once for all blocks.
    """

    is_composite = True

    def __init__(self, in_features: int, out_features: int, scaled: bool, rank: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scaled, self.rank = in_features, out_features, scaled, rank
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.common: nn.Module = linear(torch.empty((out_features, in_features), dtype=self.dtype), None)
        self.scales: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("scales", _frozen(torch.empty(out_features, dtype=self.dtype)) if scaled else None)
        self.register_parameter("bias", _frozen(torch.empty(out_features, dtype=self.dtype)) if bias else None)
        self.change = Factors(in_features, out_features, rank, False, dtype) if rank else None

    @classmethod
    def of(
        cls,
        common: nn.Linear,
        bias: torch.Tensor | None,
        scales: torch.Tensor | None = None,
        change: Factors | None = None,
    ) -> SharedLinear:
        """Return the layer of W, which is not copied, b (out_features,), s (out_features,) and a layer of B and A."""
        out_features, in_features = common.weight.shape
        rank, dtype = 0 if change is None else change.rank, common.weight.dtype
        with torch.device("meta"):  # what follows takes the place of what the constructor makes
            layer = cls(in_features, out_features, scales is not None, rank, bias is not None, dtype_name(dtype))
        layer.common, layer.change = common, change
        layer.scales = None if scales is None else _frozen(scales.to(dtype))
        layer.bias = None if bias is None else _frozen(bias)
        return layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        outputs: torch.Tensor = self.common(inputs)
        if self.scales is not None:
            outputs = outputs * self.scales
        if self.change is not None:
            outputs = outputs + self.change(inputs)
        return outputs if self.bias is None else outputs + self.bias


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
