"""Store a linear layer's weights as packed codes: one layout for every method that rounds to an affine grid."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.layers import kernels
from squeeze.layers.affine import AffineGrid, scale_dtype
from squeeze.layers.contract import dtype_name
from squeeze.layers.kernels import product_by_parts
from squeeze.layers.packing import pack, packed_bytes, unpack
from squeeze.models import architecture


class QuantizedLinear(nn.Module):
    """Multiply as y = x W^T + b with W = scales * (codes - zeros), codes packed without a wasted bit.

    Given integers it is an embedding, and gives the rows of W that they number: so one layer, stored and held once,
    serves as a model's embedding and as the head that is tied to it.

    bits: 1 to 8. group_size: weights of a row that share a scale, a divisor of in_features (itself: one group a row).
    symmetric: all zero points are 2^(bits-1), and none is stored. dtype: of inputs, bias and outputs ("bfloat16").
    real_zeros: whether zero points, where they are stored, lie between codes. embedding_scale: by which rows are
    multiplied that are looked up (Gemma's embeddings); products with floats are not.

    Stored: ``codes`` (out_features, in_features * bits / 8) uint8, ``scales`` (out_features, groups) 16-bit,
    ``zeros`` (out_features, groups * bits / 8) uint8 unless symmetric, (out_features, groups) 16-bit if real,
    ``bias`` (out_features,).

    ``memory_real``: weights stay in few bits while running. ``compute_real`` is False: every kernel for such weights
    widens them and multiplies in floating point. What decoding gains, it gains by reading fewer bytes.
    """

    memory_real = True
    compute_real = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group_size: int,
        symmetric: bool,
        bias: bool,
        dtype: str,
        real_zeros: bool = False,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.embedding_scale = in_features, out_features, embedding_scale
        self.bits, self.group_size, self.symmetric, self.real_zeros = bits, group_size, symmetric, real_zeros
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.layout: kernels.Layout | None = None
        groups = in_features // group_size
        rows = (out_features,)
        self.codes: torch.Tensor | None
        self.scales: torch.Tensor | None
        self.zeros: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.register_buffer("codes", torch.empty((*rows, packed_bytes(in_features, bits)), dtype=torch.uint8))
        self.register_buffer("scales", torch.empty((*rows, groups), dtype=scale_dtype(self.dtype)))
        packed_zeros = torch.empty((*rows, packed_bytes(groups, bits)), dtype=torch.uint8)
        zeros = torch.empty_like(self.scales) if real_zeros else packed_zeros
        self.register_buffer("zeros", None if symmetric else zeros)
        self.register_buffer("bias", torch.empty(rows, dtype=self.dtype) if bias else None)

    @classmethod
    def of(
        cls,
        codes: torch.Tensor,
        grid: AffineGrid,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        embedding_scale: float = 1.0,
    ) -> QuantizedLinear:
        """Return the layer of codes (out_features, in_features) uint8 on a grid; dtype: what it computes in."""
        out_features, in_features = codes.shape
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(
                in_features,
                out_features,
                grid.bits,
                group_size=in_features // grid.scales.shape[1],
                symmetric=grid.zeros is None,
                bias=bias is not None,
                dtype=dtype_name(dtype),
                real_zeros=grid.zeros_are_real,
                embedding_scale=embedding_scale,
            )
        layer.codes = pack(codes, grid.bits)
        layer.scales = grid.scales
        layer.zeros = grid.zeros if grid.zeros is None or grid.zeros_are_real else pack(grid.zeros, grid.bits)
        layer.bias = bias
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory."""
        if self.layout is not None:
            return 8 * self.layout.codes_bytes / (self.in_features * self.out_features)
        assert self.codes is not None
        return 8 * self.codes.nbytes / (self.in_features * self.out_features)

    @property
    def opaque_bytes(self) -> int:
        """Count the bytes in a kernel's layout, which no buffer shows."""
        return 0 if self.layout is None else sum(tensor.nbytes for tensor in self.layout.tensors())

    def prepare(self) -> None:
        """Lay the weights out for the fastest kernel there is here, if any; from then on the layer only runs."""
        self.layout = kernels.arrange(self._codes(slice(None)), self._grid(slice(None)), self.dtype)
        if self.layout is not None:
            self.codes = self.scales = self.zeros = None

    def dequantize(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return output rows ``start`` (a multiple of 64) to ``stop`` as floats: (rows, in_features)."""
        stop = self.out_features if stop is None else stop
        if self.layout is not None:
            return self.layout.dequantize(start, stop)
        return self._grid(slice(start, stop)).dequantize(self._codes(slice(start, stop)), self.dtype)

    def look_up(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return single output rows as floats, times ``embedding_scale``: (...) integers -> (..., in_features)."""
        flat = numbers.flatten()
        if self.layout is not None:
            rows = self.layout.rows(flat)
        else:
            rows = self._grid(flat).dequantize(self._codes(flat), self.dtype)
        return (rows if self.embedding_scale == 1 else rows * self.embedding_scale).reshape(*numbers.shape, -1)

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the format is our own, and no library reads it."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply floats (..., in_features) -> (..., out_features); look up integers (...) -> (..., in_features)."""
        if not inputs.is_floating_point():
            return self.look_up(inputs)
        rows = inputs.reshape(-1, self.in_features)
        if self.layout is None or len(rows) > kernels.MOST_ROWS:
            outputs = product_by_parts(rows, self.dequantize, self.out_features, self.bias)
        else:
            outputs = self.layout.multiply(rows)
            outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], self.out_features)

    def _codes(self, rows: slice | torch.Tensor) -> torch.Tensor:
        assert self.codes is not None
        return unpack(self.codes[rows], self.bits, self.in_features)

    def _grid(self, rows: slice | torch.Tensor) -> AffineGrid:
        assert self.scales is not None
        groups = self.in_features // self.group_size
        zeros = None if self.zeros is None else self.zeros[rows]
        zeros = zeros if zeros is None or self.real_zeros else unpack(zeros, self.bits, groups)
        return AffineGrid(self.bits, self.scales[rows], zeros)


def put(model: nn.Module, name: str, codes: torch.Tensor, grid: AffineGrid, dtype: torch.dtype | None = None) -> None:
    """Put codes on their grid in the place of the linear layer of that full name, which is let go.

    codes: (out_features, in_features) uint8, as the layer's weight. Its bias stays, and what it computes in, unless
    ``dtype`` is given.
    """
    layer = model.get_submodule(name)
    dtype = dtype or architecture.weight(layer).dtype
    architecture.replace(model, name, QuantizedLinear.of(codes, grid, architecture.bias(layer), dtype))
