"""Pack bits: codes of 1 to 8 bits, stored with no bit wasted.

A row of n codes is one little-endian bit stream: code i takes bits ``[i * bits, (i + 1) * bits)``, and the row ends at
the next whole byte. So 8 codes of 3 bits take 3 bytes, and the bytes of 32 of them, read as three little-endian int32
words, are the words of the GPTQ format.
"""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F

# Codes are packed in the shortest runs that end at a byte: this many bytes, held in a word of this type meanwhile.
WORD = {1: torch.uint8, 3: torch.int32, 5: torch.int64, 7: torch.int64}


def packed_bytes(count: int, bits: int) -> int:
    """Count the bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack the last dimension: (..., n) uint8 -> (..., packed_bytes(n, bits)) uint8.

    Raises ValueError where a code does not fit in ``bits`` bits: a wrong code must not spill into its neighbours.
    """
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"a code is {int(codes.max())}, but {bits} bits hold 0 to {2**bits - 1}")
    run, run_bytes = _run(bits)
    count = codes.shape[-1]
    runs = F.pad(codes, (0, -count % run)).reshape(*codes.shape[:-1], -1, run)
    word = runs[..., 0].to(WORD[run_bytes])
    for i in range(1, run):
        word |= runs[..., i].to(word.dtype) << (i * bits)
    stream = torch.stack([(word >> (8 * i)).to(torch.uint8) for i in range(run_bytes)], dim=-1)
    return stream.flatten(-2)[..., : packed_bytes(count, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Invert ``pack``: (..., packed_bytes(count, bits)) uint8 -> (..., count) uint8."""
    run, run_bytes = _run(bits)
    runs = F.pad(packed, (0, -packed.shape[-1] % run_bytes)).reshape(*packed.shape[:-1], -1, run_bytes)
    word = runs[..., 0].to(WORD[run_bytes])
    for i in range(1, run_bytes):
        word |= runs[..., i].to(word.dtype) << (8 * i)
    mask = 2**bits - 1
    codes = torch.stack([((word >> (i * bits)) & mask).to(torch.uint8) for i in range(run)], dim=-1)
    return codes.flatten(-2)[..., :count].contiguous()


def _run(bits: int) -> tuple[int, int]:
    """Return (codes, bytes) of the shortest run of codes that ends at a byte."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}, expected 1 to 8")
    run = 8 // gcd(bits, 8)
    return run, run * bits // 8
