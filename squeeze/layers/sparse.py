"""Store a linear layer without its zeros."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.layers import csr, semi_structured
from squeeze.layers.contract import dtype_name
from squeeze.layers.packing import pack, packed_bytes, unpack


class Layout(Protocol):
    """Hold a weight (out_features, in_features) as a kernel wants it that gains by its zeros."""

    def multiply(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the inputs times W^T, plus the bias (out_features,): (rows, in_features) -> (rows, out_features)."""

    def dequantize(self) -> torch.Tensor:
        """Return the dense weight, (out_features, in_features)."""

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that it holds in memory."""


def arrange(weight: torch.Tensor) -> Layout | None:
    """Return the layout of a weight (out_features, in_features) whose zeros a kernel here gains by, or None."""
    return csr.arrange(weight) or semi_structured.arrange(weight)


class SparseLinear(nn.Module):
    """Multiply as y = x W^T + b, W stored as one bit a weight (is it other than zero?) and the nonzero values.

    nonzero: number of values. dtype: of values and bias, such as "bfloat16".

    Stored: ``mask`` (out_features, in_features / 8) uint8, ``values`` (nonzero,) in row order, ``bias``
    (out_features,): 1 + (1 - sparsity) * 16 bits a weight in a 16-bit type, less than dense above a sparsity of 1/16.

    ``memory_real`` and ``compute_real`` hold where the weight was laid out for a kernel that gains by its zeros: CSR on
    a CPU, where nearly all of them are zero (``csr.LEAST_SPARSITY``), the 2:4 pattern on a GPU. Elsewhere no common
    kernel gains at the sparsities that language models bear: the weight runs dense, and what is saved is storage.
    """

    def __init__(self, in_features: int, out_features: int, nonzero: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.nonzero = in_features, out_features, nonzero
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.layout: Layout | None = None
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
        """Return the layer with this weight, (out_features, in_features)."""
        out_features, in_features = weight.shape
        values = weight[weight != 0]
        name = dtype_name(weight.dtype)
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, len(values), bias is not None, name)
        layer.mask = pack((weight != 0).to(torch.uint8), bits=1)
        layer.values = values
        layer.bias = bias
        return layer

    def stored_nonzero(self) -> int:
        """Count the values that are stored."""
        return self.nonzero

    @property
    def memory_real(self) -> bool:
        """Tell whether it is small while running."""
        return self.layout is not None

    @property
    def compute_real(self) -> bool:
        """Tell whether it skips the zeros."""
        return self.layout is not None

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory, with what tells its place."""
        held = [tensor for tensor in (self.weight, self.mask, self.values) if tensor is not None]
        held_bytes = sum(tensor.nbytes for tensor in held) + self.opaque_bytes
        return 8 * held_bytes / (self.in_features * self.out_features)

    @property
    def opaque_bytes(self) -> int:
        """Count the bytes in a kernel's layout, which no buffer shows."""
        return 0 if self.layout is None else sum(tensor.nbytes for tensor in self.layout.tensors())

    def prepare(self) -> None:
        """Lay the weight out for a kernel that gains by its zeros, or densely; from then on the layer only runs."""
        weight = self.dequantize()
        self.layout = arrange(weight)
        self.weight = weight if self.layout is None else None
        self.mask = self.values = None

    def dequantize(self) -> torch.Tensor:
        """Return the dense weight, (out_features, in_features)."""
        if self.layout is not None:
            return self.layout.dequantize()
        if self.weight is not None:
            return self.weight
        assert self.mask is not None
        assert self.values is not None
        kept = unpack(self.mask, 1, self.in_features).bool()
        return torch.zeros(kept.shape, dtype=self.dtype, device=kept.device).masked_scatter_(kept, self.values)

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the format is our own, and no library reads it."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        if self.layout is None:
            return F.linear(inputs, self.dequantize(), self.bias)
        outputs = self.layout.multiply(inputs.reshape(-1, self.in_features), self.bias)
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
