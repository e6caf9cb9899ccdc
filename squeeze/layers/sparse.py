"""A linear layer that is stored without its zeros, and the choice of the weights that become zeros."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.packing import pack, packed_bytes, unpack


class SparseLinear(nn.Module):
    """y = x W^T + b, W stored as one bit a weight (is it other than zero?) and the values of those that are.

    nonzero: number of values. dtype: of values and bias, such as "bfloat16".

    Stored: ``mask`` (out_features, in_features / 8) uint8, ``values`` (nonzero,) in row order, ``bias``
    (out_features,): 1 + (1 - sparsity) * 16 bits a weight in a 16-bit type, less than dense above a sparsity of 1/16.

    ``memory_real`` and ``compute_real`` are False: no common kernel gains from zeros at random places at the sparsities
    that language models bear, so the weight runs dense. What is saved is storage.
    """

    memory_real = False
    compute_real = False

    def __init__(self, in_features: int, out_features: int, nonzero: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.nonzero = in_features, out_features, nonzero
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.mask: torch.Tensor | None
        self.values: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.weight: torch.Tensor | None
        self.register_buffer("mask", torch.empty((out_features, packed_bytes(in_features, 1)), dtype=torch.uint8))
        self.register_buffer("values", torch.empty(nonzero, dtype=self.dtype))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)
        self.register_buffer("weight", None, persistent=False)

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> SparseLinear:
        """The layer with this weight, (out_features, in_features)."""
        out_features, in_features = weight.shape
        values = weight[weight != 0]
        name = str(weight.dtype).removeprefix("torch.")
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, len(values), bias is not None, name)
        layer.mask = pack((weight != 0).to(torch.uint8), bits=1)
        layer.values = values
        layer.bias = bias
        return layer

    def spec(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "nonzero": self.nonzero,
            "bias": self.bias is not None,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @property
    def weight_numel(self) -> int:
        """Weights that the layer stands for, zeros included."""
        return self.in_features * self.out_features

    def stored_nonzero(self) -> int:
        """Values that are stored."""
        return self.nonzero

    def prepare(self) -> None:
        """Lay the weight out densely, once; from then on the layer only runs."""
        self.weight = self.dequantize()
        self.mask = self.values = None

    def dequantize(self) -> torch.Tensor:
        """The dense weight, (out_features, in_features)."""
        if self.weight is not None:
            return self.weight
        assert self.mask is not None
        assert self.values is not None
        kept = unpack(self.mask, 1, self.in_features).bool()
        return torch.zeros(kept.shape, dtype=self.dtype, device=kept.device).masked_scatter_(kept, self.values)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(inputs, self.dequantize(), self.bias)


def check_sparsity(sparsity: float, run: int | None, in_features: Collection[int]) -> None:
    """See that a share of each run of neighbours can become zero; a run of None stands for any weights.

    Raises Unsupported for a sparsity outside [0, 1), for a run that does not divide a row, and where the share of it is
    no whole number of weights.
    """
    if not 0 <= sparsity < 1:
        raise Unsupported(f"a share of {sparsity} cannot be pruned; expected 0 <= sparsity < 1")
    if run is None:
        return
    if misfits := [width for width in in_features if run < 1 or width % run]:
        raise Unsupported(f"run {run} does not divide in_features {misfits[0]}; expected a divisor, such as 4")
    if round(sparsity * run) != sparsity * run:
        raise Unsupported(f"sparsity {sparsity} of {run} weights is {sparsity * run:g}; expected a whole number")


def lowest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Where the lowest scores of the last dimension lie: a mask with exactly round(share * n) True of every n.

    Among equal scores the first ones are taken.
    """
    count = round(share * scores.shape[-1])
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = scores < threshold, scores == threshold
    places = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1) <= places))
