"""Codes of every width survive packing, in exactly the bytes that their bits take."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squeeze.layers.packing import pack, packed_bytes, unpack


@st.composite
def coded(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    bits = draw(st.integers(1, 8))
    shape = [*draw(st.lists(st.integers(1, 5), max_size=2)), draw(st.integers(0, 70))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randint(2**bits, shape, dtype=torch.uint8, generator=generator), bits


@given(coded())
@settings(max_examples=300, deadline=None)
def test_unpack_inverts_pack(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.shape == (*codes.shape[:-1], -(-codes.shape[-1] * bits // 8))
    assert torch.equal(unpack(packed, bits, codes.shape[-1]), codes)


@given(coded())
@settings(max_examples=100, deadline=None)
def test_a_row_is_one_little_endian_bit_stream(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    for row, packed in zip(codes.flatten(0, -2) if codes.ndim > 1 else [codes], _rows(pack(codes, bits)), strict=True):
        stream = sum(code << (bits * i) for i, code in enumerate(row.tolist()))
        assert bytes(packed.tolist()) == stream.to_bytes(packed_bytes(len(row), bits), "little")


def test_three_bits_take_three_bits() -> None:
    assert pack(torch.full((64, 32), 7, dtype=torch.uint8), 3).numel() == 64 * 32 * 3 // 8


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_code_too_large_does_not_spill(bits: int) -> None:
    with pytest.raises(ValueError, match=f"a code is {2**bits}, but {bits} bits hold 0 to {2**bits - 1}"):
        pack(torch.tensor([0, 2**bits], dtype=torch.uint8), bits)


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits}, expected 1 to 8"):
        unpack(torch.zeros(8, dtype=torch.uint8), bits, 1)


def _rows(packed: torch.Tensor) -> list[torch.Tensor]:
    return list(packed.flatten(0, -2)) if packed.ndim > 1 else [packed]
