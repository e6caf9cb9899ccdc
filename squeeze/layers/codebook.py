"""Store a linear layer's weights as indices into a small table of shared values."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.layers.affine import scale_dtype
from squeeze.layers.contract import dtype_name
from squeeze.layers.kernels import product_by_parts
from squeeze.layers.packing import pack, packed_bytes, unpack


class CodebookLinear(nn.Module):
    """Multiply as y = x W^T + b, W_ij = codebooks[i // rows, codes_ij], with codes packed without a wasted bit.

    bits: of a code; a codebook has 2^bits values. rows: output rows that share a codebook, a divisor of out_features.
    dtype: of inputs, bias and outputs ("bfloat16").

    Stored: ``codes`` (out_features, in_features * bits / 8) uint8, ``codebooks`` (out_features / rows, 2^bits) 16-bit,
    ``bias`` (out_features,).

    ``memory_real``: weights stay indices while running. ``compute_real`` is False: values are looked up some rows at a
    time, and multiplied as floats. No kernel of torch looks values up, so decoding is slow.
    """

    memory_real = True
    compute_real = False

    def __init__(self, in_features: int, out_features: int, bits: int, rows: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.rows = in_features, out_features, bits, rows
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.codes: torch.Tensor
        self.codebooks: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("codes", torch.empty((out_features, packed_bytes(in_features, bits)), dtype=torch.uint8))
        self.register_buffer("codebooks", torch.empty((out_features // rows, 2**bits), dtype=scale_dtype(self.dtype)))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)

    @classmethod
    def of(
        cls, codes: torch.Tensor, codebooks: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> CodebookLinear:
        """Make the layer of codes (out_features, in_features) uint8, codebooks (out_features / rows, 2^bits) 16-bit."""
        out_features, in_features = codes.shape
        bits, rows = codebooks.shape[1].bit_length() - 1, out_features // len(codebooks)
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, bits, rows, bias is not None, dtype_name(dtype))
        layer.codes, layer.codebooks, layer.bias = pack(codes, bits), codebooks, bias
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory."""
        return 8 * self.codes.nbytes / (self.in_features * self.out_features)

    @property
    def opaque_bytes(self) -> int:
        """Count nothing: all that it holds lies in its buffers."""
        return 0

    def prepare(self) -> None:
        """Do nothing: it runs as it is stored."""

    def dequantize(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return output rows ``start`` to ``stop`` as floats: (rows, in_features)."""
        places = self.places(start, stop)
        values = self.codebooks.to(self.dtype).flatten()
        return values.index_select(0, places.flatten()).view(places.shape)

    def places(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return where the values of output rows ``start`` to ``stop`` stand in all codebooks, one after the other.

        (rows, in_features) int32.
        """
        stop = self.out_features if stop is None else stop
        codes = unpack(self.codes[start:stop], self.bits, self.in_features).to(torch.int32)
        first = torch.arange(start, stop, dtype=torch.int32, device=codes.device) // self.rows * 2**self.bits
        return codes.add_(first[:, None])

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the format is our own, and no library reads it."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        rows = inputs.reshape(-1, self.in_features)
        outputs = product_by_parts(rows, self.dequantize, self.out_features, self.bias)
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
