"""Stand in a linear layer's place as two thin ones, one after the other: fewer weights where the rank is low."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.layers.contract import dtype_name, linear


class Factors(nn.Module):
    """Multiply as y = B (A x) + b.

    rank: of B A. dtype: of the factors and the bias, such as "bfloat16".

    ``down`` is A (rank, in_features), ``up`` is B (out_features, rank) with the bias. Both are linear layers like any
    other of the block, so that steps which follow compress or train them, and not their product.
    """

    is_composite = True

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.dtype: torch.dtype = getattr(torch, dtype)
        own = torch.empty(out_features, dtype=self.dtype) if bias else None
        self.down: nn.Module = linear(torch.empty((rank, in_features), dtype=self.dtype), None)
        self.up: nn.Module = linear(torch.empty((out_features, rank), dtype=self.dtype), own)

    @classmethod
    def of(cls, down: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None) -> Factors:
        """Return the layer of A (rank, in_features), B (out_features, rank) and b (out_features,), none copied."""
        rank, in_features = down.shape
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, len(up), rank, bias is not None, dtype_name(down.dtype))
        layer.down, layer.up = linear(down, None), linear(up, bias)
        return layer

    @property
    def bias(self) -> torch.Tensor | None:
        """Return b, (out_features,), or None."""
        return self.up.bias  # type: ignore[return-value]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        outputs: torch.Tensor = self.up(self.down(inputs))
        return outputs
