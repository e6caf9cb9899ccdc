"""Int8Linear multiplies integers: what its codes and scales say, to the last bit before the final rounding."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import spec
from squeeze.layers.int8 import Int8Linear, symmetric_codes

IN, OUT = 40, 24
WEIGHT = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, OUT)[:, None]
BIAS = torch.randn(OUT, generator=torch.Generator().manual_seed(1))
RANGE = (-1.5, 3.25)


def inputs(rows: int) -> torch.Tensor:
    """Tokens of very different sizes, none of them centred."""
    values = torch.randn(rows, IN, generator=torch.Generator().manual_seed(rows)) + 0.5
    return values * torch.logspace(-2, 1, rows)[:, None]


def made(static: bool, dtype: torch.dtype = torch.float32, bias: bool = True) -> Int8Linear:
    return Int8Linear.of(WEIGHT.to(dtype), BIAS.to(dtype) if bias else None, RANGE if static else None)


def test_by_hand() -> None:
    layer = Int8Linear.of(torch.tensor([[12.7, -2.54], [0.0, 0.0]]), torch.tensor([1.0, 2.0]))
    assert layer.codes.tolist() == [[127, -25], [0, 0]]  # -2.54 / 0.1 = -25.4
    found = layer(torch.tensor([[0.5, -0.254]]))  # one scale, 0.5 / 127: codes 127 and -64.5 -> -64 or -65
    codes, scales = symmetric_codes(torch.tensor([[0.5, -0.254]]))
    assert codes.tolist() in ([[127, -64]], [[127, -65]])
    expected = float(scales) * 0.1 * (127 * 127 + 25 * abs(int(codes[0, 1]))) + 1
    assert found.tolist() == [[pytest.approx(expected, rel=1e-6), 2.0]]


def test_a_static_zero_point_by_hand() -> None:
    """[-1, 4.1] in 255 steps of 0.02: zero has the code -128 + 50 = -78; what is beyond the range saturates."""
    layer = Int8Linear.of(torch.tensor([[1.27, 0.0], [0.0, 1.27]]), None, (-1.0, 4.1))
    assert float(layer.input_scale) == pytest.approx(0.02)
    assert int(layer.input_zero) == -78
    found = layer(torch.tensor([[0.0, 1.0], [9.0, -9.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.27], [1.27 * 4.1, -1.27]]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_it_is_the_product_of_the_rounded_matrices(rows: int, static: bool, bias: bool) -> None:
    layer, given = made(static, bias=bias), inputs(rows)
    if static:
        scale = (RANGE[1] - RANGE[0]) / 255
        zero = round(-128 - RANGE[0] / scale)
        rounded = scale * ((given.double() / scale).round() + zero).clamp(-128, 127).sub(zero)
    else:
        scale = given.double().abs().amax(1, keepdim=True) / 127
        rounded = scale * (given.double() / scale).round()
    expected = rounded @ layer.dequantize().double().T + (BIAS.double() if bias else 0)
    torch.testing.assert_close(layer(given).double(), expected, rtol=1e-4, atol=1e-4)
    unprepared = layer(given)
    layer.prepare()
    assert torch.equal(layer(given), unprepared)


def test_weights_are_the_nearest_of_their_row() -> None:
    error = (made(False).dequantize() - WEIGHT).abs()
    assert (error <= 0.5001 * WEIGHT.abs().amax(1, keepdim=True) / 127).all()


@pytest.mark.parametrize("static", [False, True])
def test_a_token_depends_on_no_other(static: bool) -> None:
    layer, given = made(static), inputs(9)
    for i in range(len(given)):
        assert torch.equal(layer(given[i]), layer(given)[i])


def test_tokens_of_zeros_and_rows_of_zeros_stay_zero() -> None:
    layer = Int8Linear.of(torch.zeros(OUT, IN), None)
    assert torch.equal(layer(torch.zeros(2, IN)), torch.zeros(2, OUT))
    silent = Int8Linear.of(WEIGHT, None, (0.0, 0.0))  # no calibration text ever reached it
    assert (float(silent.input_scale), int(silent.input_zero)) == (1.0, -128)
    assert torch.equal(silent(torch.zeros(2, IN)), torch.zeros(2, OUT))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_differ_by_their_last_rounding(dtype: torch.dtype) -> None:
    layer, given = made(False, dtype), inputs(5).to(dtype)
    wide = Int8Linear.of(WEIGHT.to(dtype).float(), BIAS.to(dtype).float())
    assert layer(given).dtype == dtype
    assert torch.equal(layer(given), wide(given.float()).to(dtype))


@pytest.mark.parametrize("static", [False, True])
def test_the_state_loads_into_a_layer_made_from_the_spec(static: bool) -> None:
    layer = made(static, torch.bfloat16)
    state = {"codes": torch.int8, "scales": torch.float32, "bias": torch.bfloat16}
    state |= {"input_scale": torch.float32, "input_zero": torch.int32} if static else {}
    assert {name: tensor.dtype for name, tensor in layer.state_dict().items()} == state
    copy = Int8Linear(**spec(layer))
    copy.load_state_dict(layer.state_dict(), strict=True)
    given = inputs(3).bfloat16()
    assert torch.equal(copy(given.reshape(3, 1, IN)).reshape(3, OUT), layer(given))


def test_another_device_is_refused() -> None:
    with pytest.raises(Unsupported, match="no kernel for meta here; use device=cpu"):
        Int8Linear.of(WEIGHT.to("meta"), None)
