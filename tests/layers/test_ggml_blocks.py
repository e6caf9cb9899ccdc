"""Our codes in ggml's blocks: the ``gguf`` package reads the very values that our layer multiplies with."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid
from squeeze.layers.ggml_blocks import KINDS, blocks_of
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models.gguf_file import Stored

ROWS, COLUMNS = 48, 192
GRIDS = [(4, True, "signed"), (4, True, "absmax"), (8, True, "signed"), (8, True, "absmax"), (3, True, "signed")]
GRIDS += [(2, True, "signed"), (4, False, "signed"), (3, False, "signed"), (2, False, "signed")]


def layer_of(
    bits: int, symmetric: bool, group_size: int = 32, grid: str = "signed", dtype: torch.dtype = torch.float32
) -> QuantizedLinear:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3].abs_()
    weight[5, :64] = 0
    fitted = affine.fit(weight, bits, group_size, symmetric, grid)
    return QuantizedLinear.of(fitted.quantize(weight), fitted, None, dtype)


def read(stored: Stored) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[stored.kind]
    return torch.from_numpy(gguf.quants.dequantize(stored.data.numpy(), kind))


@pytest.mark.parametrize("group_size", [32, 64, COLUMNS])
@pytest.mark.parametrize(("bits", "symmetric", "grid"), GRIDS)
def test_each_value_is_ours(bits: int, symmetric: bool, grid: str, group_size: int) -> None:
    layer = layer_of(bits, symmetric, group_size, grid)
    stored = blocks_of("layer", layer)
    assert stored.kind == {True: "Q8_0" if bits == 8 else "Q4_0", False: "Q4_1"}[symmetric]
    if symmetric:
        assert torch.equal(read(stored), layer.dequantize())
    else:  # float16 rounds a minimum
        steps = layer.scales.float().repeat_interleave(group_size, dim=1)
        assert ((read(stored) - layer.dequantize()).abs() <= 0.008 * steps).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_16_bits_each_value_is_ours_before_its_product_is_rounded(dtype: torch.dtype) -> None:
    layer = layer_of(4, True, dtype=dtype)
    assert torch.equal(read(blocks_of("layer", layer)).to(dtype), layer.dequantize())


def test_a_block_by_hand() -> None:
    """Code i of 32 lies in the low half of byte i, code i + 16 in the high half; the scale, 0.5, before them."""
    codes = (torch.arange(32) % 16).to(torch.uint8)[None]
    codes[0, 16:] = 15 - codes[0, 16:]
    scales = torch.tensor([[-0.5]], dtype=torch.bfloat16)
    zeros = torch.tensor([[3]], dtype=torch.uint8)
    half = np.array([-0.5, 1.5], np.float16).view(np.uint8).tolist()
    nibbles = [i | (15 - i) << 4 for i in range(16)]
    symmetric = QuantizedLinear.of(codes, AffineGrid(4, scales, None), None, torch.bfloat16)
    assert blocks_of("", symmetric).data.tolist() == [[*half[:2], *nibbles]]
    asymmetric = QuantizedLinear.of(codes, AffineGrid(4, scales, zeros), None, torch.bfloat16)
    assert blocks_of("", asymmetric).data.tolist() == [[*half, *nibbles]]
    signed = QuantizedLinear.of(codes, AffineGrid(8, scales, None), None, torch.bfloat16)
    bytes_ = [int(code) - 128 + 256 if code < 128 else int(code) - 128 for code in codes[0]]
    assert blocks_of("", signed).data.tolist() == [[*half[:2], *bytes_]]


def test_rounded_by_the_package_our_signed_grid_is_its_q4_0() -> None:
    """With scales that float16 and bfloat16 hold alike, llama.cpp's own rounding has our scales, and our codes."""
    weight = torch.randint(-7, 8, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0)) / 8.0
    weight[:, ::32] = -1.0
    grid = affine.fit(weight, 4, 32, symmetric=True)
    ours = blocks_of("layer", QuantizedLinear.of(grid.quantize(weight), grid, None, torch.float32))
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(ours.data, torch.from_numpy(theirs))


def test_real_zero_points_are_minima() -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    fitted = affine.fit(weight, 4, 32, symmetric=False)
    zeros = (fitted.zeros.float() + 0.25).to(torch.bfloat16)
    layer = QuantizedLinear.of(fitted.quantize(weight), AffineGrid(4, fitted.scales, zeros), None, torch.float32)
    steps = layer.scales.float().repeat_interleave(32, dim=1)
    assert ((read(blocks_of("layer", layer)) - layer.dequantize()).abs() <= 0.008 * steps).all()


def test_a_minimum_near_zero_is_off_by_less_of_a_step_however_few_bits_it_has() -> None:
    """Below 2^-14 float16 has fewer than 11 bits."""
    codes = (torch.arange(32) % 16).to(torch.uint8)[None]
    scales, zeros = (torch.tensor([[value]], dtype=torch.bfloat16) for value in (0.0123, 0.00123))
    layer = QuantizedLinear.of(codes, AffineGrid(4, scales, zeros), None, torch.float32)
    assert 0 < (read(blocks_of("layer", layer)) - layer.dequantize()).abs().max() <= 0.004 * scales.float().max()


def test_what_has_no_type_is_refused() -> None:
    large, small = (layer_of(4, True) for _ in range(2))
    large.scales[7, 2], small.scales[0, 0] = 1e6, 1e-7
    for layer, message in (
        (layer_of(8, False), "up: ggml has no 8-bit codes with zero points; use symmetric=true"),
        (layer_of(4, True, 16), "up: groups of 16 are no multiple of ggml's blocks of 32; use group_size=32"),
        (large, r"up: float16, ggml's type of a scale, does not hold 9\.99e\+05|1e\+06"),
        (small, "up: float16, ggml's type of a scale, does not hold 1e-07|9.9"),
    ):
        with pytest.raises(Unsupported, match=message):
            blocks_of("up", layer)


def test_each_kind_is_one_of_ggmls_that_takes_more_bits_than_its_codes() -> None:
    for name, kind in KINDS.items():
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert weights % kind.shared == 0
        assert kind.bits < 8 * size / weights <= kind.bits + 1, name
