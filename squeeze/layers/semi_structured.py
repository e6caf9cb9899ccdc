"""Multiply with a matrix in the 2:4 pattern on a GPU, whose tensor cores skip the two zeros of each four neighbours.

Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (arXiv:2104.08378). A weight takes 9 bits in a 16-bit
type: half of the values, and two bits for the place of each. CPUs have no such product: there the weight runs dense.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F

RUN, MOST_NONZERO = 4, 2
DTYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64  # multiples of which both of torch's kernels take, in 16 bits
LEAST_CAPABILITY = (8, 0)  # of a GPU: Ampere's


@dataclass(frozen=True)
class SemiStructured:
    """Hold a matrix (out_features, in_features) as torch's tensor of that pattern."""

    weight: torch.sparse.SparseSemiStructuredTensor

    def multiply(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the inputs times W^T, plus the bias (out_features,): (rows, in_features) -> (rows, out_features)."""
        return F.linear(inputs, self.weight, bias)

    def dequantize(self) -> torch.Tensor:
        """Return the dense matrix, (out_features, in_features)."""
        return self.weight.to_dense()  # type: ignore[no-untyped-call,no-any-return]

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that it holds in memory."""
        return [part for part in (self.weight.packed, self.weight.meta) if part is not None]


def arrange(weight: torch.Tensor) -> SemiStructured | None:
    """Return the layout of a weight (out_features, in_features), or None where no kernel here takes it."""
    if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < LEAST_CAPABILITY:
        return None
    fits = weight.dtype in DTYPES and weight.shape[0] % ROWS == 0 and weight.shape[1] % COLUMNS == 0
    if not (fits and is_two_of_four(weight)):
        return None
    with warnings.catch_warnings():  # that the interface is a prototype
        warnings.simplefilter("ignore", UserWarning)
        return SemiStructured(torch.sparse.to_sparse_semi_structured(weight.contiguous()))


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Tell whether at most two of each four neighbours in a row are other than zero; in_features a multiple of 4."""
    return bool((weight.reshape(len(weight), -1, RUN).count_nonzero(-1) <= MOST_NONZERO).all())
