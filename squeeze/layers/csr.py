"""Multiply with a matrix of few nonzero values on the CPU, in compressed sparse rows: zeros take no room and no time.

The product is MKL's, which has one for float32 alone: inputs in 16 bits are widened and outputs rounded, and the values
lie in 32 bits beside columns of 32, so that a nonzero weight takes 64 bits. That is less than dense 16 bits a weight
above a sparsity of 0.75.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

# From which share of zeros on this product is the faster one for a single row of inputs and for a prompt of 128, save
# the 192 rows of keys and values in bfloat16, by what it takes the place of; one layout runs both, and single rows gain
# from 0.5 on. Found by ``python -m scripts.sparse_kernels``; below 0.75 it would take more memory than dense.
LEAST_SPARSITY: Mapping[torch.dtype, float] = {torch.float32: 0.9, torch.bfloat16: 0.95}


@dataclass(frozen=True)
class CSR:
    """Hold the nonzero values of a matrix (out_features, in_features) in row order.

    offsets: (out_features + 1,) int32, where each row begins among the values. columns: (nonzero,) int32.
    values: (nonzero,) float32. dtype: of the matrix that it stands for.
    """

    offsets: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    in_features: int
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: torch.Tensor) -> CSR:
        """Lay out a weight, (out_features, in_features)."""
        _let_announce()
        kept = weight != 0
        offsets = torch.zeros(len(weight) + 1, dtype=torch.int32)
        torch.cumsum(kept.sum(dim=1), dim=0, dtype=torch.int32, out=offsets[1:])
        return cls(offsets, kept.nonzero()[:, 1].int(), weight[kept].float(), weight.shape[1], weight.dtype)

    def multiply(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the inputs times W^T, plus the bias (out_features,): (rows, in_features) -> (rows, out_features)."""
        outputs: torch.Tensor = product(self.offsets, self.columns, self.values, inputs.float())
        return (outputs if bias is None else outputs + bias).to(inputs.dtype)

    def dequantize(self) -> torch.Tensor:
        """Return the dense matrix, (out_features, in_features)."""
        rows = torch.arange(len(self.offsets) - 1).repeat_interleave(self.offsets.diff())
        weight = torch.zeros((len(self.offsets) - 1, self.in_features), dtype=self.dtype)
        weight[rows, self.columns] = self.values.to(self.dtype)
        return weight

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that it holds in memory."""
        return [self.offsets, self.columns, self.values]


def arrange(weight: torch.Tensor) -> CSR | None:
    """Return the layout of a weight (out_features, in_features), or None where a dense product is no slower."""
    least = LEAST_SPARSITY.get(weight.dtype)
    has_kernel: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or least is None or not has_kernel:
        return None
    zeros = int((weight == 0).sum())
    return CSR.of(weight) if zeros / weight.numel() >= least else None


@torch.library.custom_op("squeeze::csr_product", mutates_args=())  # so that a compiler, which has no CSR, leaves it be
def product(offsets: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return the inputs times W^T, both float32: (rows, in_features) -> (rows, out_features). W: see ``CSR``."""
    size = (len(offsets) - 1, inputs.shape[1])
    matrix = torch.sparse_csr_tensor(offsets, columns, values, size=size, check_invariants=False)
    if len(inputs) == 1:
        return matrix.mv(inputs[0])[None]
    return (matrix @ inputs.T).T.contiguous()


@product.register_fake
def _shape(offsets: torch.Tensor, _: torch.Tensor, __: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return inputs.new_empty((len(inputs), len(offsets) - 1))


@cache
def _let_announce() -> None:
    """Let torch say now, and to nobody, what it says at the first such tensor of a process: that they are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.eye(1).to_sparse_csr()
