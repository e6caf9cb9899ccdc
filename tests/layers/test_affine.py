"""The affine map, by hand and by its properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squeeze.core.errors import Unsupported
from squeeze.layers.affine import AffineGrid, check, check_group_size, fit, search


def test_symmetric_by_hand() -> None:
    weight = torch.tensor([[-4.0, -1.4, 0.0, 3.9]])
    grid = fit(weight, bits=3, group_size=4, symmetric=True)
    assert grid.zeros is None
    assert grid.scales.tolist() == [[1.0]]
    codes = grid.quantize(weight)
    assert codes.tolist() == [[0, 3, 4, 7]]  # 3.9 is clipped to the last code
    assert grid.dequantize(codes, torch.float32).tolist() == [[-4.0, -1.0, 0.0, 3.0]]


def test_symmetric_scale_takes_the_sign_that_reaches_the_outermost_code() -> None:
    weight = torch.tensor([[4.0, 1.4, 0.0, -3.0]])
    grid = fit(weight, bits=3, group_size=4, symmetric=True)
    assert grid.scales.tolist() == [[-1.0]]
    assert grid.dequantize(grid.quantize(weight), torch.float32).tolist() == [[4.0, 1.0, 0.0, -3.0]]


def test_absmax_by_hand() -> None:
    """Codes -4 to 3 times 2 * 3.5 / 7: the outermost weights, 3.5 steps from zero, go to -4 and (clipped) to 3."""
    weight = torch.tensor([[3.5, -3.5, 1.4, 0.0], [0.0, 0.0, 0.0, 0.0]])
    grid = fit(weight, bits=3, group_size=4, symmetric=True, grid="absmax")
    assert grid.scales.tolist() == [[1.0], [1.0]]
    assert grid.dequantize(grid.quantize(weight), torch.float32).tolist() == [[3.0, -4.0, 1.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_absmax_is_the_grid_of_the_libraries(bits: int) -> None:
    """Their ``Quantizer`` with sym=True: the range widened to -xmax, xmax; of 2^b - 1 steps; zero in the middle."""
    weight = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    most = 2**bits - 1
    xmax = torch.maximum(weight.amin(1).abs(), weight.amax(1))
    scale, zero = ((xmax - -xmax) / most).bfloat16().float()[:, None], (most + 1) / 2
    expected = scale * ((weight / scale).round().add(zero).clamp(0, most) - zero)
    grid = fit(weight, bits, 32, symmetric=True, grid="absmax")
    assert torch.equal(grid.dequantize(grid.quantize(weight), torch.float32), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 5}, "rtn has no 5-bit codes; bits that work: 8, 4, 3, 2"),
        ({"group_size": 48}, "group_size 48 does not divide in_features 64"),
        ({"grid": "minmax"}, "rtn has no grid 'minmax'; expected signed or absmax"),
    ],
)
def test_what_has_no_codes_is_refused(fields: dict[str, object], message: str) -> None:
    given = {"bits": 4, "group_size": 32, "layers": [torch.nn.Linear(64, 8)], **fields}
    with pytest.raises(Unsupported, match=message):
        check("rtn", **given)
    check("rtn", 4, None, given["layers"])


def test_asymmetric_by_hand() -> None:
    weight = torch.tensor([[-0.5, 0.0, 0.6, 1.0]])
    grid = fit(weight, bits=2, group_size=4, symmetric=False)
    assert grid.scales.tolist() == [[0.5]]  # 1.5 / 3
    assert grid.zeros is not None
    assert grid.zeros.tolist() == [[1]]
    codes = grid.quantize(weight)
    assert codes.tolist() == [[0, 1, 2, 3]]
    assert grid.dequantize(codes, torch.float32).tolist() == [[-0.5, 0.0, 0.5, 1.0]]


def test_each_group_has_its_own_scale() -> None:
    weight = torch.tensor([[-1.0, 0.5, -100.0, 50.0], [-8.0, 4.0, 0.0, 0.0]])
    grid = fit(weight, bits=4, group_size=2, symmetric=True)
    assert grid.scales.tolist() == [[0.125, 12.5], [1.0, 1.0]]  # of a group of zeros: 1
    assert torch.equal(grid.dequantize(grid.quantize(weight), torch.float32), weight)


@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([4, 16, 48]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_rounding_error_is_within_the_grid(
    bits: int, group_size: int, symmetric: bool, dtype: torch.dtype, seed: int
) -> None:
    weight = torch.randn(5, 48, generator=torch.Generator().manual_seed(seed)).to(dtype)
    grid = fit(weight, bits, group_size, symmetric)
    codes = grid.quantize(weight)
    error = (grid.dequantize(codes, torch.float32) - weight.float()).abs()
    steps = grid.scales.float().abs().repeat_interleave(group_size, dim=1)
    inside = (codes > 0) & (codes < 2**bits - 1)
    assert (error <= 0.5001 * steps)[inside].all()
    assert (error <= 1.1 * steps * (1 + 2**bits / 256)).all()  # at the ends: clipping, and the scale's own rounding


@given(symmetric=st.booleans(), bits=st.integers(2, 8), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_zero_stays_zero(symmetric: bool, bits: int, seed: int) -> None:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)) + 1
    weight[:, ::3] = 0
    grid = fit(weight, bits, 16, symmetric)
    assert (grid.dequantize(grid.quantize(weight), torch.float32)[:, ::3] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_grid_point_is_its_own_nearest(symmetric: bool) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    grid = fit(weight, 4, 32, symmetric)
    codes = grid.quantize(weight)
    assert torch.equal(grid.quantize(grid.dequantize(codes, torch.float32)), codes)


def test_the_stored_scale_makes_the_codes() -> None:
    weight = torch.full((1, 8), -1.003)
    grid = fit(weight, 8, 8, symmetric=True)
    assert grid.scales.dtype == torch.bfloat16
    exact = torch.round(weight.double() / grid.scales.double()) + 128
    assert torch.equal(grid.quantize(weight).double(), exact.clamp(0, 255))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_take_16_bits(dtype: torch.dtype) -> None:
    grid = fit(torch.ones(2, 8, dtype=dtype), 4, 8, symmetric=False)
    assert grid.scales.dtype == (torch.float16 if dtype == torch.float16 else torch.bfloat16)
    assert grid.dequantize(torch.zeros(2, 8, dtype=torch.uint8), dtype).dtype == dtype


def test_dequantize_subtracts_zero_points_without_wrapping() -> None:
    grid = AffineGrid(8, torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([[255]], dtype=torch.uint8))
    assert grid.dequantize(torch.tensor([[0, 255]], dtype=torch.uint8), torch.bfloat16).tolist() == [[-255.0, 0.0]]


def test_a_group_size_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(Unsupported, match=r"128 does not divide in_features 576 .* 8, 12, 16, 24, 32, 48, 64, 96, 192"):
        check_group_size(128, [1536, 576])


@pytest.mark.parametrize("group_size", [0, -32])
def test_a_group_size_below_one_is_refused(group_size: int) -> None:
    with pytest.raises(Unsupported, match=f"group_size {group_size} "):
        check_group_size(group_size, [64])


def test_no_group_size_fits_everything() -> None:
    check_group_size(None, [7, 11])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_ranges_are_the_best_of_their_shares(bits: int, symmetric: bool) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) ** 3
    widest, found = fit(weight, bits, 16, symmetric), search(weight, bits, 16, symmetric)

    def errors(scales: torch.Tensor) -> torch.Tensor:
        grid = AffineGrid(bits, scales, widest.zeros)
        difference = grid.dequantize(grid.quantize(weight), torch.float32) - weight
        return difference.reshape(8, 4, 16).square().sum(-1)

    tried = [errors((widest.scales.float() * (1 - i / 40)).to(torch.bfloat16)) for i in range(25)]
    assert torch.equal(errors(found.scales), torch.stack(tried).amin(0))
    assert errors(found.scales).sum() < errors(widest.scales).sum()


def test_a_searched_range_by_hand() -> None:
    """Of 15 weights of 1 and one of 1.4, in 2 bits: codes 0 to 3 stand for m, m/2, 0 and -m/2. The best m is near 1."""
    weight = torch.cat([torch.ones(15), torch.tensor([1.4])])[None]
    grid = search(weight, 2, 16, symmetric=True)
    values = grid.dequantize(grid.quantize(weight), torch.float32)
    assert ((values - 1).abs() < 0.05).all()  # with the full range: 0.7 for the 15
