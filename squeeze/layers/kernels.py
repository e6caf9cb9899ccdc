"""Lay quantized weights out in memory for the low-bit matrix kernels that torch has on CPUs.

int8    one scale per output row: ``torch._weight_int8pack_mm``. It reads 16 weights and inputs at a time, from aligned
        addresses, whatever their number, and checks none of it: rows are filled up with zeros.
int4    groups of 32, 64, 128 or 256 weights, w = (q - 8) * scale + offset: ``_weight_int4pack_mm_for_cpu``.
        Codes of 2 and 3 bits run in it too, then at 4 bits a weight in memory. 8-bit codes in groups run as two planes
        of nibbles, q = 16 * high + low, whose products add up.

The kernels read few bits and widen them in registers: they save memory traffic, not arithmetic. So they are fast for
the few rows of a decoding step and slow for a prompt; there weights are dequantized and multiplied as floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

from squeeze.layers.affine import AffineGrid

# For a 1536 x 576 matrix in bfloat16 on two cores with AVX-512, microseconds by rows of input:
#   rows                     1    8   16   32   64  512
#   dense product           67   93  116  173  265 1050
#   int4 kernel             17   66  125  264  480 3900
#   int8 kernel             15   70  131  264  555 3330
# Dequantizing takes about 300 (int4) or 150 (int8) before a dense product. In float16 and float32 neither kernel is
# vectorised: 690 and 310 for a single row, ten times the dense product, so they are used for bfloat16 alone.
MOST_ROWS = 32
INT8_VECTOR = 16  # values that the int8 kernel reads at once, of a whole number in each row, from an aligned address
INT4_GROUPS = (256, 128, 64, 32)


class Layout(Protocol):
    """Hold weights (out_features, in_features) as a kernel wants them."""

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs times W^T: (rows, in_features) -> (rows, out_features)."""

    def dequantize(self, start: int, stop: int) -> torch.Tensor:
        """Return output rows ``start`` (a multiple of 64) to ``stop`` as floats, equal to those of the stored codes."""

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the output rows with these numbers, (n,) int64 -> (n, in_features), equal to ``dequantize``'s."""

    @property
    def codes_bytes(self) -> int:
        """Return the bytes that the codes take, whatever width they had before they were laid out."""

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that it holds in memory."""


def arrange(codes: torch.Tensor, grid: AffineGrid, dtype: torch.dtype) -> Layout | None:
    """Return the layout in which these weights run fastest, or None where no kernel takes them.

    codes: (out_features, in_features) uint8. dtype: of the inputs.
    """
    if dtype != torch.bfloat16 or codes.device.type != "cpu":
        return None
    if grid.bits == 8 and grid.zeros is None and grid.scales.shape[1] == 1:
        return Int8Layout.of(codes, grid.scales[:, 0].to(dtype))
    group_size = codes.shape[1] // grid.scales.shape[1]
    kernel_group = next((size for size in INT4_GROUPS if group_size % size == 0), None)
    if kernel_group is None or _int4_block() is None or not (grid.bits <= 4 or grid.bits == 8):
        return None
    return Int4Layout.of(codes, grid, kernel_group)


@dataclass(frozen=True)
class Int8Layout:
    """Hold codes: (out_features, in_padded) int8, zeros after the last; scales: (out_features,)."""

    codes: torch.Tensor
    scales: torch.Tensor
    in_features: int

    @classmethod
    def of(cls, codes: torch.Tensor, scales: torch.Tensor) -> Int8Layout:
        """Lay out codes (out_features, in_features) uint8, of which 128 stands for 0, with a scale for each row."""
        in_features = codes.shape[1]
        signed = (codes ^ 128).view(torch.int8)
        return cls(F.pad(signed, (0, -in_features % INT8_VECTOR)), scales, in_features)

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs times W^T; see ``Layout``."""
        padding = self.codes.shape[1] - self.in_features
        if padding:
            inputs = F.pad(inputs, (0, padding))
        elif torch.compiler.is_compiling() or inputs.storage_offset() % INT8_VECTOR:  # where it lies, no trace can tell
            inputs = inputs.clone(memory_format=torch.contiguous_format)
        return torch._weight_int8pack_mm(inputs.contiguous(), self.codes, self.scales)

    def dequantize(self, start: int, stop: int) -> torch.Tensor:
        """Return a range of output rows as floats; see ``Layout``."""
        return self._values(slice(start, stop))

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return single output rows as floats; see ``Layout``."""
        return self._values(numbers)

    def _values(self, rows: slice | torch.Tensor) -> torch.Tensor:
        return self.codes[rows, : self.in_features].to(self.scales.dtype).mul_(self.scales[rows, None])

    @property
    def codes_bytes(self) -> int:
        """Return the bytes that the codes take; see ``Layout``."""
        return self.codes.nbytes

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that it holds in memory; see ``Layout``."""
        return [self.codes, self.scales]


@dataclass(frozen=True)
class Int4Layout:
    """Hold one plane of 4-bit codes, or two for 8-bit codes: low nibbles, then high ones.

    planes: each (out_padded, in_features / 2) uint8, interleaved by the kernel's own packer in blocks of output rows.
    grids: each (groups, out_padded, 2), the plane's scale and offset.
    zeros: (groups, out_padded) uint8, or float32 for real ones, or the one zero point of all groups.
    """

    planes: tuple[torch.Tensor, ...]
    grids: tuple[torch.Tensor, ...]
    zeros: torch.Tensor | int
    group_size: int
    out_features: int

    @classmethod
    def of(cls, codes: torch.Tensor, grid: AffineGrid, group_size: int) -> Int4Layout:
        """Lay out codes: (out_features, in_features) uint8; group_size: the kernel's, a divisor of the grid's."""
        out_features, in_features = codes.shape
        repeats = in_features // group_size // grid.scales.shape[1]
        scales = _kernel_order(grid.scales, repeats)
        zeros = 2 ** (grid.bits - 1) if grid.zeros is None else _kernel_order(grid.zeros, repeats)
        if grid.zeros_are_real:
            zeros = zeros.float()  # what is added to them must not round
        if grid.bits <= 4:
            centred = 8 - 2 ** (grid.bits - 1)  # added to codes and zero points: the middle code becomes the kernel's 8
            codes, zeros = codes + centred, zeros + centred
            planes, grids = [codes], [_kernel_grid(scales, (8 - _signed(zeros)) * scales)]
        else:
            # s (q - z) = 16 s (high - 8) + s (low - 8) + s (136 - z). The last, too long for 16 bits, is held in a
            # coarse and a fine part, one a plane.
            offsets = (136 - _signed(zeros)) * scales.float()
            coarse = offsets.to(scales.dtype)
            planes = [codes & 15, codes >> 4]
            grids = [_kernel_grid(scales, offsets - coarse), _kernel_grid(16 * scales, coarse)]
        return cls(tuple(map(_interleave, planes)), tuple(grids), zeros, group_size, out_features)

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs times W^T; see ``Layout``."""
        multiply, inputs = torch._weight_int4pack_mm_for_cpu, inputs.contiguous()
        product = multiply(inputs, self.planes[0], self.group_size, self.grids[0])
        for plane, grid in zip(self.planes[1:], self.grids[1:], strict=True):
            product += multiply(inputs, plane, self.group_size, grid)
        return product if product.shape[1] == self.out_features else product[:, : self.out_features]

    def dequantize(self, start: int, stop: int) -> torch.Tensor:
        """Return a range of output rows as floats; see ``Layout``.

        What a prompt waits for: as long as codes are bytes they are cheap to move, so all that can be done is done to
        bytes, as they lie, and they become floats in the very place where these are wanted.
        """
        block = _int4_block() or 1
        low, *high = (
            plane.view(-1, plane.shape[1] * 2, block // 2)[start // block : -(-stop // block)] for plane in self.planes
        )
        halves = low & 15, low >> 4  # of each block's rows: (blocks, in_features, block / 2)
        for plane in high:
            halves[0].bitwise_or_(plane << 4)
            halves[1].bitwise_or_(plane & 240)
        scales = self.grids[0][:, start : start + block * len(low), 0].contiguous()
        steps = scales.new_empty((low.shape[1], len(low), 2, block // 2))
        for number, codes in enumerate(halves):
            if isinstance(self.zeros, int):
                codes = codes.sub_(self.zeros).view(torch.int8)  # they wrap around to what is meant
            steps[:, :, number].copy_(codes.permute(1, 0, 2))
        values = steps.view(len(scales), self.group_size, -1)
        if not isinstance(self.zeros, int):
            values.sub_(self.zeros[:, None, start : start + values.shape[2]])
        return values.mul_(scales[:, None]).flatten(0, 1)[:, : stop - start].T

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return single output rows as floats; see ``Layout``."""
        return self._values([_picked(plane, numbers) for plane in self.planes], numbers)

    def _values(self, planes: list[torch.Tensor], rows: slice | torch.Tensor) -> torch.Tensor:
        """Return the values of some rows, (rows, in_features), from their codes, (in_features, rows) in each plane."""
        codes, *high = planes
        for plane in high:
            codes |= plane << 4
        scales = self.grids[0][:, rows, 0].contiguous()  # strided, each product takes three times as long
        zeros = self.zeros if isinstance(self.zeros, int) else self.zeros[:, None, rows]
        steps = codes.reshape(len(scales), self.group_size, -1).to(scales.dtype).sub_(zeros)
        return steps.mul_(scales[:, None]).flatten(0, 1).T

    @property
    def codes_bytes(self) -> int:
        """Return the bytes that the codes take; see ``Layout``."""
        return sum(plane.nbytes for plane in self.planes)

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that it holds in memory; see ``Layout``."""
        return [*self.planes, *self.grids, *([] if isinstance(self.zeros, int) else [self.zeros])]


def _kernel_order(values: torch.Tensor, repeats: int) -> torch.Tensor:
    """Return (out_features, groups) as (groups * repeats, out_padded): the kernel's smaller groups, whole blocks."""
    padding = -values.shape[0] % (_int4_block() or 1)
    return F.pad(values.repeat_interleave(repeats, dim=1), (0, 0, 0, padding)).T.contiguous()


def _kernel_grid(scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return torch.stack([scales, offsets.to(scales.dtype)], dim=-1)


def _signed(zeros: torch.Tensor | int) -> torch.Tensor | int:
    """Return zero points that may be subtracted from: bytes would wrap around."""
    return zeros if isinstance(zeros, int) or zeros.is_floating_point() else zeros.to(torch.int16)


def _interleave(codes: torch.Tensor) -> torch.Tensor:
    padding = -codes.shape[0] % (_int4_block() or 1)
    padded = F.pad(codes, (0, 0, 0, padding)).to(torch.int32)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(padded, 1)  # type: ignore[no-any-return]


def _deinterleave(packed: torch.Tensor, start: int, stop: int, block: int | None = None) -> torch.Tensor:
    """Return output rows ``start`` (of a block) to ``stop`` of packed codes, as (in_features, rows) uint8.

    The packer takes the rows in blocks. For each input feature of a block there are block / 2 bytes: the first half of
    the rows in their low nibbles, the second half in the high ones.
    """
    block = block or _int4_block() or 1
    blocks = packed.view(-1, packed.shape[1] * 2, block // 2)[start // block : -(-stop // block)].permute(1, 0, 2)
    return torch.stack([blocks & 15, blocks >> 4], dim=2).flatten(1)[:, : stop - start]


def _picked(packed: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return what ``_deinterleave`` gives of single rows: (n,) int64 -> (in_features, n) uint8."""
    block = _int4_block() or 1
    half = block // 2
    blocks = packed.view(-1, packed.shape[1] * 2, half)
    both = blocks[rows // block, :, rows % half]
    return torch.where((rows % block < half)[:, None], both & 15, both >> 4).T


@cache
def _int4_block() -> int | None:
    """Probe how many rows this CPU's packer has in a block (AVX-512: 64, AVX2: 32); None if it packs otherwise."""
    probe = torch.randint(16, (64, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(probe, 1)
    return next((block for block in (64, 32) if torch.equal(_deinterleave(packed, 0, 64, block).T.int(), probe)), None)


WEIGHTS_AT_ONCE = 2**22  # dequantized at a time: no more than this of a model is ever held as floats

ROWS_MULTIPLE = 64  # of output rows, so that the blocks of every kernel layout stay whole


def product_by_parts(
    inputs: torch.Tensor,
    dequantize: Callable[[int, int], torch.Tensor],
    out_features: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return the product inputs W^T + bias: (rows, in_features) -> (rows, out_features).

    dequantize: (start, stop) -> those output rows of W, (stop - start, in_features); start is a multiple of 64.
    """
    step = max(WEIGHTS_AT_ONCE // inputs.shape[1] // ROWS_MULTIPLE, 1) * ROWS_MULTIPLE
    parts = []
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        parts.append(F.linear(inputs, dequantize(start, stop), None if bias is None else bias[start:stop]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
