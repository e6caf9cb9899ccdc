"""Lay packed codes out as the blocks of ggml, the tensor library of llama.cpp, without moving any to another value.

A block holds 32 neighbours of a row, d and m in float16:

    Q4_0   d (q - 8)   d, then 16 bytes: code i in the low half of byte i, code i + 16 in the high one
    Q4_1   d q + m     d, m, then the same 16 bytes
    Q8_0   d q         d, then 32 bytes: signed codes

So a symmetric grid of 4 bits or fewer is Q4_0, an asymmetric one Q4_1, and a symmetric one of 8 bits Q8_0: both grids
of ``affine`` are, with whatever scale. Codes of 2 and 3 bits take 4 there. Of a group of several blocks, each has the
group's scale. The minimum of Q4_1, m = -s z, is a product of 8 bits and 4, of which float16 holds 11: it may be off by
2^-11 of itself, less than 0.008 steps. Where a real zero point lies near zero, m may be so small that float16 has fewer
bits: there it may be off by 2^-8 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from squeeze.core.errors import Unsupported
from squeeze.layers.packing import pack, unpack
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models.gguf_file import Stored

BLOCK = 32
ROUNDED, STEPS = 2.0**-11, 2.0**-8  # of a minimum, and of a step, by which float16 may be off


@dataclass(frozen=True)
class Kind:
    """Describe a type of ggml's.

    bits: of a code. shared: neighbours that have a scale of their own or, of types with a codebook, one entry of it.
    symmetric: whether no group has a minimum.
    """

    bits: int
    shared: int
    symmetric: bool = True


KINDS: Mapping[str, Kind] = {
    "Q4_0": Kind(4, 32),
    "Q4_1": Kind(4, 32, symmetric=False),
    "Q5_0": Kind(5, 32),
    "Q5_1": Kind(5, 32, symmetric=False),
    "Q8_0": Kind(8, 32),
    "Q2_K": Kind(2, 16, symmetric=False),
    "Q3_K": Kind(3, 16),
    "Q4_K": Kind(4, 32, symmetric=False),
    "Q5_K": Kind(5, 32, symmetric=False),
    "Q6_K": Kind(6, 16),
    "IQ1_S": Kind(1, 8),
    "IQ1_M": Kind(1, 8),
    "IQ2_XXS": Kind(2, 8),
    "IQ2_XS": Kind(2, 8),
    "IQ2_S": Kind(2, 8),
    "IQ3_XXS": Kind(3, 4),
    "IQ3_S": Kind(3, 4),
    "IQ4_NL": Kind(4, 32),
    "IQ4_XS": Kind(4, 32),
}


def blocks_of(name: str, layer: QuantizedLinear) -> Stored:
    """Return the blocks of a packed layer as it is stored, rows in its order: (out_features, bytes of a row) uint8.

    name: the layer's, for messages. Raises Unsupported where no type of ggml has these codes: 8 bits with zero points,
    groups that are no multiple of 32, and scales that float16 does not hold.
    """
    assert layer.codes is not None
    assert layer.scales is not None
    if layer.bits > 4 and not (layer.bits == 8 and layer.symmetric):
        kind = "around zero" if layer.symmetric else "with zero points"
        raise Unsupported(f"{name}: ggml has no {layer.bits}-bit codes {kind}; use symmetric=true bits=8, or bits=4")
    if layer.group_size % BLOCK:
        raise Unsupported(
            f"{name}: groups of {layer.group_size} are no multiple of ggml's blocks of {BLOCK}; use group_size=32"
        )
    codes = unpack(layer.codes, layer.bits, layer.in_features)
    scales = layer.scales.repeat_interleave(layer.group_size // BLOCK, dim=1)
    if layer.symmetric and layer.bits == 8:
        return Stored("Q8_0", _joined(_half(name, scales), signed=codes ^ 128))
    if layer.symmetric:
        return Stored("Q4_0", _joined(_half(name, scales), nibbles=codes + (8 - 2 ** (layer.bits - 1))))
    minima = -scales.float() * _zeros(layer).repeat_interleave(layer.group_size // BLOCK, dim=1)
    allowed = torch.maximum(ROUNDED * minima.abs(), STEPS * scales.float().abs())
    return Stored("Q4_1", _joined(_half(name, scales), _half(name, minima, allowed), nibbles=codes))


def _zeros(layer: QuantizedLinear) -> Tensor:
    """Return the zero points of an asymmetric grid, (out_features, groups) float32."""
    assert layer.zeros is not None
    if layer.real_zeros:
        return layer.zeros.float()
    return unpack(layer.zeros, layer.bits, layer.in_features // layer.group_size).float()


def _half(name: str, values: Tensor, allowed: Tensor | float = 0.0) -> Tensor:
    """Return values in float16. Raises Unsupported where one of them is off by more than is allowed of it."""
    half = values.to(torch.float16)
    off = (half.double() - values.double()).abs() > allowed
    if bool(off.any()):
        worst = float(values[off].abs().max())
        raise Unsupported(f"{name}: float16, ggml's type of a scale, does not hold {worst:.3g}; use dtype=float16")
    return half


def _joined(*numbers: Tensor, nibbles: Tensor | None = None, signed: Tensor | None = None) -> Tensor:
    """Return blocks, (rows, bytes of a row) uint8: each the float16 numbers of its place, and then its codes.

    numbers: (rows, blocks) float16. nibbles: (rows, columns) uint8, 0 to 15; or signed: bytes as they are.
    """
    rows, blocks = numbers[0].shape
    if nibbles is None:
        assert signed is not None
        codes = signed.view(rows, blocks, BLOCK)
    else:  # halves of a block beside each other, so that two codes that share a byte are neighbours
        halves = nibbles.view(rows, blocks, 2, BLOCK // 2).transpose(2, 3)
        codes = pack(halves.reshape(rows, blocks, BLOCK), bits=4)
    heads = [number.contiguous().unsqueeze(-1).view(torch.uint8) for number in numbers]
    return torch.cat([*heads, codes], dim=-1).flatten(1)
