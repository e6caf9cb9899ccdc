"""Joined layouts multiply as their parts do; parts show their own rows, and hold them once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from squeeze.layers import kernels
from squeeze.layers.affine import fit
from squeeze.layers.joined import Part, joined, rows_of
from squeeze.layers.kernels import Layout

IN, ROWS = 128, (128, 64, 64)  # whole blocks of every kernel
# bits, group size, whether zero points are fixed
KINDS = [(4, 32, True), (4, 64, False), (3, 128, True), (8, 64, True), (8, 32, False), (8, IN, True)]


def layout(rows: int, bits: int = 4, group_size: int = 32, symmetric: bool = True) -> Layout:
    weight = torch.randn(rows, IN, generator=torch.Generator().manual_seed(rows + bits)).add_(0.3).bfloat16()
    grid = fit(weight, bits, group_size, symmetric)
    made = kernels.arrange(grid.quantize(weight), grid, torch.bfloat16)
    if made is None:
        pytest.skip("this CPU has no kernel for packed weights")
    return made


def parts_of(whole: Layout, rows: Sequence[int]) -> list[Part]:
    stops = torch.tensor(rows).cumsum(0).tolist()
    return [Part(whole, stop - count, stop) for count, stop in zip(rows, stops, strict=True)]


def whole_of(layouts: Sequence[Layout]) -> Layout:
    whole = joined(layouts)
    assert whole is not None
    return whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5])
def test_one_product_gives_what_several_give(kind: tuple[int, int, bool], count: int) -> None:
    layouts = [layout(rows, *kind) for rows in ROWS]
    inputs = torch.randn(count, IN, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.cat([each.multiply(inputs) for each in layouts], dim=1)
    torch.testing.assert_close(whole_of(layouts).multiply(inputs), expected, rtol=8e-3, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_what_it_was_before(kind: tuple[int, int, bool]) -> None:
    layouts = [layout(rows, *kind) for rows in ROWS]
    numbers, inputs = torch.tensor([63, 0, 7]), torch.ones(2, IN, dtype=torch.bfloat16)
    for part, own, rows in zip(parts_of(whole_of(layouts), ROWS), layouts, ROWS, strict=True):
        assert torch.equal(part.dequantize(0, rows), own.dequantize(0, rows))
        assert torch.equal(part.dequantize(rows - 64, rows - 1), own.dequantize(rows - 64, rows - 1))
        assert torch.equal(part.rows(numbers), own.rows(numbers))
        torch.testing.assert_close(part.multiply(inputs), own.multiply(inputs), rtol=8e-3, atol=1e-2)
        assert part.codes_bytes == own.codes_bytes
        assert [each.nbytes for each in part.tensors()] == [each.nbytes for each in own.tensors()]


@pytest.mark.parametrize("kind", KINDS)
def test_all_parts_together_hold_the_whole_and_nothing_beside_it(kind: tuple[int, int, bool]) -> None:
    whole = whole_of([layout(rows, *kind) for rows in ROWS])
    held = {tensor.untyped_storage().data_ptr() for tensor in whole.tensors()}
    tensors = [tensor for part in parts_of(whole, ROWS) for tensor in part.tensors()]
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} == held
    assert sum(tensor.nbytes for tensor in tensors) == sum(tensor.nbytes for tensor in whole.tensors())


@pytest.mark.parametrize(
    "other",
    [
        {"group_size": 64},
        {"symmetric": False},
        {"bits": 8, "group_size": 32},
        {"bits": 8, "group_size": IN},
        {"rows": 40},  # padded: a block of the kernel would hold rows of two layers
    ],
)
def test_layouts_that_no_kernel_takes_together_stay_apart(other: dict[str, int]) -> None:
    assert joined([layout(64), layout(**{"rows": 64, **other})]) is None  # type: ignore[arg-type]


def test_widths_that_run_in_one_kernel_are_joined() -> None:
    four, three = layout(64, 4), layout(64, 3)
    whole = whole_of([four, three])
    assert torch.equal(whole.dequantize(64, 128), three.dequantize(0, 64))
    assert torch.equal(whole.dequantize(0, 64), four.dequantize(0, 64))


def test_parts_of_one_layout_are_that_one() -> None:
    whole = whole_of([layout(rows) for rows in ROWS])
    first, second, third = parts_of(whole, ROWS)
    assert joined([first, second, third]) is whole
    assert joined([second, first, third]) is None
    assert joined([first, second]) is None
    assert joined([first, layout(64)]) is None
    assert rows_of(whole) == sum(ROWS)
