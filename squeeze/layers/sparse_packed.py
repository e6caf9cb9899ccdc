"""Store a pruned linear layer's weights as packed codes of those alone that are not zero."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.layers.affine import AffineGrid, scale_dtype
from squeeze.layers.contract import dtype_name, matrices
from squeeze.layers.packing import pack, packed_bytes, unpack
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture


class SparsePackedLinear(nn.Module):
    """Multiply as y = x W^T + b with W = scales * (codes - zeros), where codes that equal their zero point take a bit.

    bits, group_size, symmetric, dtype: as of ``QuantizedLinear``; zero points are whole codes. nonzero: codes stored.

    Stored: ``mask`` (out_features, in_features / 8) uint8, a bit a weight: is it other than zero?; ``codes``
    (nonzero * bits / 8,) uint8, in row order; ``scales``, ``zeros`` and ``bias`` as of ``QuantizedLinear``. That is
    1 + (1 - sparsity) * bits bits a weight and the scales: at 4 bits, half of the weights zero, 3 instead of 4.

    It runs as the ``QuantizedLinear`` of the same codes, which ``prepare`` makes: what is saved is storage, and
    ``memory_real`` is that layer's. ``compute_real`` is False.
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
        nonzero: int,
        bias: bool,
        dtype: str,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.nonzero = in_features, out_features, nonzero
        self.bits, self.group_size, self.symmetric = bits, group_size, symmetric
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.running: tuple[QuantizedLinear, ...] = ()  # in a tuple: it is no layer of the model beside this one
        rows, groups = out_features, in_features // group_size
        self.mask: torch.Tensor | None
        self.codes: torch.Tensor | None
        self.scales: torch.Tensor | None
        self.zeros: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.register_buffer("mask", torch.empty((rows, packed_bytes(in_features, 1)), dtype=torch.uint8))
        self.register_buffer("codes", torch.empty(packed_bytes(nonzero, bits), dtype=torch.uint8))
        self.register_buffer("scales", torch.empty((rows, groups), dtype=scale_dtype(self.dtype)))
        zeros = torch.empty((rows, packed_bytes(groups, bits)), dtype=torch.uint8)
        self.register_buffer("zeros", None if symmetric else zeros)
        self.register_buffer("bias", torch.empty(rows, dtype=self.dtype) if bias else None)

    @classmethod
    def of(cls, layer: QuantizedLinear) -> SparsePackedLinear:
        """Return the layer of the same weights. layer: not prepared, its zero points whole codes."""
        assert layer.codes is not None
        codes = unpack(layer.codes, layer.bits, layer.in_features)
        kept = codes != _zero_points(layer.zeros, layer.bits, layer.in_features, layer.group_size).to(codes.device)
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            made = cls(
                layer.in_features,
                layer.out_features,
                layer.bits,
                layer.group_size,
                layer.symmetric,
                nonzero=int(kept.sum()),
                bias=layer.bias is not None,
                dtype=dtype_name(layer.dtype),
            )
        made.mask, made.codes = pack(kept.to(torch.uint8), bits=1), pack(codes[kept], layer.bits)
        made.scales, made.zeros, made.bias = layer.scales, layer.zeros, layer.bias
        return made

    @property
    def code_bytes(self) -> int:
        """Count the bytes of mask and codes, as they are stored."""
        assert self.mask is not None
        assert self.codes is not None
        return self.mask.nbytes + self.codes.nbytes

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory."""
        if self.running:
            return self.running[0].running_bits
        return 8 * self.code_bytes / (self.in_features * self.out_features)

    @property
    def opaque_bytes(self) -> int:
        """Count the bytes of the layer that runs, which no buffer of this one shows; the bias is both's."""
        shown = [tensor.nbytes for layer in self.running for tensor in layer.buffers() if tensor is not self.bias]
        return sum(shown) + sum(layer.opaque_bytes for layer in self.running)

    def prepare(self) -> None:
        """Lay all codes out for the fastest kernel there is here; from then on the layer only runs."""
        layer = self.coded()
        self.mask = self.codes = self.scales = self.zeros = None
        layer.prepare()
        self.running = (layer,)

    def coded(self) -> QuantizedLinear:
        """Return the layer that has a code for every weight, zeros included."""
        assert self.mask is not None
        assert self.codes is not None
        assert self.scales is not None
        kept = unpack(self.mask, 1, self.in_features).bool()
        points = _zero_points(self.zeros, self.bits, self.in_features, self.group_size)
        codes = points.to(kept.device).expand(kept.shape).clone()
        codes[kept] = unpack(self.codes, self.bits, self.nonzero)
        groups = self.in_features // self.group_size
        grid = AffineGrid(self.bits, self.scales, None if self.zeros is None else unpack(self.zeros, self.bits, groups))
        return QuantizedLinear.of(codes, grid, self.bias, self.dtype)

    def dequantize(self) -> torch.Tensor:
        """Return the weight in floats, (out_features, in_features)."""
        return self._runs().dequantize()

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the format is our own, and no library reads it."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        outputs: torch.Tensor = self._runs()(inputs)
        return outputs

    def _runs(self) -> QuantizedLinear:
        return self.running[0] if self.running else self.coded()


def leave_zeros_out(model: nn.Module) -> None:
    """Store packed layers within the blocks without the codes of zeros, wherever that takes fewer bytes.

    One that stands in several places stays one.
    """
    smaller: dict[nn.Module, nn.Module] = {}
    for name, layer in list(matrices(model)):
        if isinstance(layer, QuantizedLinear) and not layer.real_zeros and layer.codes is not None:
            if layer not in smaller:
                sparse = SparsePackedLinear.of(layer)
                smaller[layer] = sparse if sparse.code_bytes < layer.codes.nbytes else layer
            architecture.replace(model, name, smaller[layer])


def _zero_points(zeros: torch.Tensor | None, bits: int, in_features: int, group_size: int) -> torch.Tensor:
    """Return the code that stands for zero, for each weight (out_features, in_features), or one for all of them."""
    if zeros is None:
        return torch.full((1, 1), 2 ** (bits - 1), dtype=torch.uint8)
    return unpack(zeros, bits, in_features // group_size).repeat_interleave(group_size, dim=-1)
