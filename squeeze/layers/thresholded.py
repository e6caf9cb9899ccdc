"""Set the small entries of a linear layer's input to zero, and leave out the columns that they would meet.

Two layers, one in the other: ``Thresholded`` makes the zeros, whatever its base stores its weight in; ``ColumnsLinear``
is the base for floats, which skips columns where there are zeros enough.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.layers.contract import dtype_name

# Where skipping is faster than the dense product, by `python -m scripts.sparse_activations`. Other dtypes never skip.
SKIPS_FROM = {torch.bfloat16: 0.25, torch.float32: 0.25}  # share of an input's entries that are zero
SKIPS_OF = 2**18  # weights of a matrix


class Thresholded(nn.Module):
    """Multiply as y = W (x * [|x| > t]) + b, for every token alike: of a prompt, of scored text, or decoded.

    threshold: t, at least 0. bias, dtype: of the base as it is made, ``ColumnsLinear``; a step may compress it.

    ``base`` is the layer of W and b, a matrix of the model like any other. No tensor is stored beside it.
    """

    is_composite = True

    def __init__(self, in_features: int, out_features: int, threshold: float, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.threshold = in_features, out_features, threshold
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.base: nn.Module = ColumnsLinear(in_features, out_features, bias, dtype)

    @classmethod
    def of(cls, base: nn.Module, shape: tuple[int, int], threshold: float, dtype: torch.dtype) -> Thresholded:
        """Return the layer of a base of shape (out_features, in_features), which is not copied.

        dtype: of its inputs and outputs.
        """
        out_features, in_features = shape
        with torch.device("meta"):  # the base takes the place of the constructor's
            layer = cls(in_features, out_features, threshold, False, dtype_name(dtype))
        layer.base = base
        return layer

    @property
    def bias(self) -> torch.Tensor | None:
        """Return b, (out_features,), or None."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        outputs: torch.Tensor = self.base(F.hardshrink(inputs, self.threshold))
        return outputs


class ColumnsLinear(nn.Module):
    """Multiply as y = W x + b; for one token on the CPU, leave out the columns of W that meet a zero, if many do.

    dtype: of weight and bias, such as "bfloat16".

    Stored: ``weight`` (out_features, in_features) and ``bias`` (out_features,), as a plain layer stores them. Ready to
    run, matrices of ``SKIPS_OF`` weights lie column by column, so that what is read is contiguous; others are never
    skipped in.

    ``memory_real`` and ``compute_real`` are False: all weights are in memory, a prompt is multiplied densely, and in
    floating point. What skipping saves is time of decoding.
    """

    memory_real = False
    compute_real = False

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.skips = False
        self.weight: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("weight", torch.empty((out_features, in_features), dtype=self.dtype))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> ColumnsLinear:
        """Return the layer of this weight, (out_features, in_features), and bias, (out_features,)."""
        out_features, in_features = weight.shape
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, bias is not None, dtype_name(weight.dtype))
        layer.weight, layer.bias = weight.contiguous(), bias
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight takes in memory."""
        return 8.0 * self.dtype.itemsize

    @property
    def opaque_bytes(self) -> int:
        """Count nothing: all that it holds lies in its buffers."""
        return 0

    def prepare(self) -> None:
        """Lay the weight out column by column where columns may be skipped; from then on the layer only runs."""
        if self.dtype in SKIPS_FROM and self.weight.numel() >= SKIPS_OF and self.weight.device.type == "cpu":
            self.weight, self.skips = by_columns(self.weight), True

    def dequantize(self) -> torch.Tensor:
        """Return the weight, (out_features, in_features)."""
        return self.weight

    def leaves_out(self, active: int) -> bool:
        """Tell whether columns are skipped for one token of which so many entries are other than zero."""
        return self.skips and active <= (1 - SKIPS_FROM[self.dtype]) * self.in_features

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the tensors are a plain layer's."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        # A compiled graph cannot branch on how many zeros there are.
        if self.skips and inputs.numel() == self.in_features and not torch.compiler.is_compiling():
            token = inputs.flatten()
            active = token.nonzero().squeeze(1)
            if self.leaves_out(len(active)):
                outputs = skipped(self.weight, token, active)
                outputs = outputs if self.bias is None else outputs + self.bias
                return outputs.view(*inputs.shape[:-1], self.out_features)
        return F.linear(inputs, self.weight, self.bias)


def by_columns(weight: torch.Tensor) -> torch.Tensor:
    """Return the same weight, (out_features, in_features), a column's elements side by side in memory."""
    return weight.T.contiguous().T


def skipped(weight: torch.Tensor, inputs: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Return W x, (out_features,), of the columns whose inputs are not zero; the others are not read.

    weight: (out_features, in_features), ``by_columns``. inputs: (in_features,). active: the places of what is not zero,
    (n,) int64. The columns are shared out among the threads, a sum for each.
    """
    parts = max(1, min(torch.get_num_threads(), len(active)))
    starts = torch.tensor([part * len(active) // parts for part in range(parts)])
    sums = F.embedding_bag(active, weight.T, starts, mode="sum", per_sample_weights=inputs[active])
    return sums[0] if parts == 1 else sums.sum(dim=0)
