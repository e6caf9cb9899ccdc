"""QuantizedLinear computes what its codes say: as stored, and in every kernel's layout."""

from __future__ import annotations

import pytest
import torch

from squeeze.layers import kernels
from squeeze.layers.affine import AffineGrid, fit
from squeeze.layers.contract import spec, weight_numel
from squeeze.layers.kernels import Int4Layout, Int8Layout
from squeeze.layers.quantized import QuantizedLinear

IN, OUT = 192, 80  # 80 rows: not a whole number of a kernel's blocks
GRIDS = [
    (bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (32, 48, 64, 96, IN) for symmetric in (True, False)
]


def made(bits: int, group_size: int, symmetric: bool, dtype: torch.dtype, bias: bool = True) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(OUT, IN, generator=generator).add_(0.3).to(dtype)
    grid = fit(weight, bits, group_size, symmetric)
    return QuantizedLinear.of(grid.quantize(weight), grid, torch.randn(OUT).to(dtype) if bias else None, dtype)


def inputs(rows: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, IN, generator=torch.Generator().manual_seed(rows)).to(dtype)


def reference(layer: QuantizedLinear, weight: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    product = given.double() @ weight.double().T
    return product if layer.bias is None else product + layer.bias.double()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, kernels.MOST_ROWS + 1])
def test_forward_multiplies_with_the_dequantized_weight(
    bits: int, group_size: int, symmetric: bool, dtype: torch.dtype, rows: int
) -> None:
    layer = made(bits, group_size, symmetric, dtype)
    weight, given = layer.dequantize(), inputs(rows, dtype)
    expected = reference(layer, weight, given)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert relative_error(layer(given), expected) < tolerance
    layer.prepare()
    assert torch.equal(layer.dequantize(), weight)
    assert relative_error(layer(given), expected) < tolerance


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_dequantized_weight_is_the_grid_s(bits: int, group_size: int, symmetric: bool) -> None:
    codes = torch.randint(2**bits, (OUT, IN), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales = torch.linspace(-1, 2, OUT * (IN // group_size)).reshape(OUT, -1).to(torch.bfloat16)
    zeros = None if symmetric else torch.randint(2**bits, scales.shape, dtype=torch.uint8)
    layer = QuantizedLinear.of(codes, AffineGrid(bits, scales, zeros), None, torch.float32)
    expected = torch.empty(OUT, IN)
    for row in range(OUT):
        for column in range(IN):
            zero = 2 ** (bits - 1) if zeros is None else int(zeros[row, column // group_size])
            expected[row, column] = scales[row, column // group_size].float() * (int(codes[row, column]) - zero)
    assert torch.equal(layer.dequantize(), expected)


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "layout"),
    [
        (8, IN, True, Int8Layout),
        (8, IN, False, Int4Layout),
        (8, 64, True, Int4Layout),
        (4, 32, True, Int4Layout),
        (4, IN, False, Int4Layout),
        (3, 64, True, Int4Layout),
        (2, 96, False, Int4Layout),
        (4, 48, True, None),
    ],
)
def test_the_kernel_of_each_format(bits: int, group_size: int, symmetric: bool, layout: type | None) -> None:
    layer = made(bits, group_size, symmetric, torch.bfloat16)
    stored = sum(buffer.nbytes for buffer in layer.buffers())
    layer.prepare()
    assert isinstance(layer.layout, layout) if layout else layer.layout is None
    if layout:
        assert layer.codes is None
        assert layer.scales is None
        assert layer.opaque_bytes > 0
    else:
        assert layer.opaque_bytes == 0
        assert sum(buffer.nbytes for buffer in layer.buffers()) == stored


def test_kernels_run_at_their_bits() -> None:
    """Of 256 rows, a whole number of blocks: 4.5 bits a weight at 4 bits and groups of 64, 9 at 8 bits, 4.5 at 3."""
    weight = torch.randn(256, 256).to(torch.bfloat16)
    for bits, most in ((8, 9.01), (4, 4.51), (3, 4.51), (2, 4.51)):
        grid = fit(weight, bits, 64, symmetric=True)
        layer = QuantizedLinear.of(grid.quantize(weight), grid, None, torch.bfloat16)
        layer.prepare()
        assert 8 * layer.opaque_bytes / weight.numel() <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_types_without_a_fast_kernel_keep_the_packed_codes(dtype: torch.dtype) -> None:
    layer = made(4, 64, True, dtype)
    layer.prepare()
    assert layer.layout is None


@pytest.mark.parametrize("prepared", [False, True])
def test_blocks_of_rows_give_the_whole(monkeypatch: pytest.MonkeyPatch, prepared: bool) -> None:
    layer, given = made(4, 64, False, torch.bfloat16), inputs(50, torch.bfloat16)
    if prepared:
        layer.prepare()
    whole, weight = layer(given), layer.dequantize()
    sizes: list[int] = []
    dequantize = QuantizedLinear.dequantize

    def watched(self: QuantizedLinear, start: int = 0, stop: int | None = None) -> torch.Tensor:
        part = dequantize(self, start, stop)
        sizes.append(part.shape[0])
        assert torch.equal(part, weight[start:stop])
        return part

    monkeypatch.setattr(QuantizedLinear, "dequantize", watched)
    monkeypatch.setattr(kernels, "WEIGHTS_AT_ONCE", 64 * IN)
    assert torch.allclose(layer(given), whole, rtol=1e-2)
    assert sizes == [64, 16]


def test_leading_dimensions_are_kept() -> None:
    layer = made(4, 64, True, torch.float32)
    assert layer(torch.zeros(2, 3, IN)).shape == (2, 3, OUT)
    assert torch.equal(layer(torch.zeros(IN)), layer.bias)


def test_state_is_packed_and_loads_into_a_layer_made_from_the_spec() -> None:
    layer = made(3, 48, False, torch.bfloat16)
    state = layer.state_dict()
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()} == {
        "codes": (torch.uint8, (OUT, IN * 3 // 8)),
        "scales": (torch.bfloat16, (OUT, IN // 48)),
        "zeros": (torch.uint8, (OUT, 2)),  # 4 zero points of 3 bits
        "bias": (torch.bfloat16, (OUT,)),
    }
    copy = QuantizedLinear(**spec(layer))
    copy.load_state_dict(state, strict=True)
    assert torch.equal(copy.dequantize(), layer.dequantize())
    assert weight_numel(layer) == IN * OUT


def test_symmetric_stores_no_zero_points() -> None:
    assert set(made(4, 64, True, torch.bfloat16, bias=False).state_dict()) == {"codes", "scales"}


def test_words_are_those_of_the_gptq_format() -> None:
    """32 codes of 3 bits are three int32 words, each code's bits in order across them."""
    layer = made(3, 64, True, torch.float32)
    words = layer.codes[0, :12].clone().view(torch.int32).tolist()
    stream = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    weight = layer.dequantize()[0, :32] / layer.scales[0, 0].float()
    assert [(stream >> (3 * i)) & 7 for i in range(32)] == (weight.round() + 4).tolist()
