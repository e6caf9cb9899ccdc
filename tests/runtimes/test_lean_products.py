"""Products without modules: what the layers give, side by side, from weights that are held once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from squeeze.layers.affine import fit
from squeeze.layers.contract import live_bytes
from squeeze.layers.joined import Part
from squeeze.layers.kernels import MOST_ROWS
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.sparse_packed import SparsePackedLinear
from squeeze.runtimes.lean_products import Apart, Packed, alone, products, together

IN, OUT = 128, (128, 64, 64)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(rows: int, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(IN, rows, bias=bias).to(dtype).requires_grad_(False)
    layer.weight.copy_(random(rows, IN, seed=rows))
    if bias:
        layer.bias.copy_(random(rows, seed=rows + 1))
    return layer


def packed(rows: int, bits: int = 4, group_size: int = 32, bias: bool = False) -> QuantizedLinear:
    weight = random(rows, IN, seed=rows + bits).bfloat16()
    grid = fit(weight, bits, group_size, symmetric=True)
    own = random(rows).bfloat16() if bias else None
    layer = QuantizedLinear.of(grid.quantize(weight), grid, own, torch.bfloat16)
    layer.prepare()
    if layer.layout is None:
        pytest.skip("this CPU has no kernel for packed weights")
    return layer


def sparse(rows: int) -> SparsePackedLinear:
    weight = random(rows, IN, seed=rows).bfloat16()
    grid = fit(weight.where(weight > 0.5, 0), 4, 32, symmetric=True)
    codes = grid.quantize(weight.where(weight > 0.5, 0))
    layer = SparsePackedLinear.of(QuantizedLinear.of(codes, grid, None, torch.bfloat16))
    layer.prepare()
    return layer


def outputs(layers: tuple[Any, ...], inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([layer(inputs) for layer in layers], dim=-1)


def storages(layers: tuple[Any, ...]) -> set[int]:
    return {layer.weight.untyped_storage().data_ptr() for layer in layers}


@pytest.mark.parametrize("bias", [False, True])
def test_plain_layers_become_one_product_and_views_of_one_weight(bias: bool) -> None:
    layers = tuple(dense(rows, bias) for rows in OUT)
    inputs = random(5, IN, seed=9)
    expected, before = outputs(layers, inputs), live_bytes(nn.ModuleList(layers))
    product = together(layers)
    torch.testing.assert_close(product(inputs), expected)
    torch.testing.assert_close(outputs(layers, inputs), expected)  # the modules still run
    assert not isinstance(product, Apart)
    assert len(storages(layers)) == 1
    assert live_bytes(nn.ModuleList(layers)) == before


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, MOST_ROWS, MOST_ROWS + 1])
def test_packed_layers_become_one_product_in_their_kernel(bits: int, rows: int, bias: bool) -> None:
    layers = tuple(packed(each, bits, IN if bits == 8 else 32, bias) for each in OUT)
    inputs = random(rows, IN, seed=9).bfloat16()
    expected, before = outputs(layers, inputs), live_bytes(nn.ModuleList(layers))
    product = together(layers)
    assert isinstance(product, Packed)
    torch.testing.assert_close(product(inputs), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(outputs(layers, inputs), expected, rtol=1e-2, atol=1e-2)
    assert all(isinstance(layer.layout, Part) for layer in layers)
    assert live_bytes(nn.ModuleList(layers)) == before
    assert [layer.running_bits for layer in layers] == [bits] * len(OUT)


def test_layers_are_joined_once_however_often_they_are_asked_for() -> None:
    layers = tuple(packed(each) for each in OUT)
    first, second = together(layers), together(layers)
    assert isinstance(first, Packed)
    assert isinstance(second, Packed)
    assert first.layout is second.layout


def test_layers_that_leave_zeros_out_are_joined_as_what_they_run_as() -> None:
    layers = tuple(sparse(each) for each in OUT)
    inputs = random(3, IN, seed=9).bfloat16()
    expected, before = outputs(layers, inputs), live_bytes(nn.ModuleList(layers))
    product = together(layers)
    torch.testing.assert_close(product(inputs), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(outputs(layers, inputs), expected, rtol=1e-2, atol=1e-2)
    assert live_bytes(nn.ModuleList(layers)) == before


DIFFERENT: dict[str, Callable[[], tuple[Any, ...]]] = {
    "biases": lambda: (dense(64, bias=True), dense(64)),
    "kinds": lambda: (dense(64, dtype=torch.bfloat16), packed(64)),
    "kernels": lambda: (packed(64), packed(64, bits=8, group_size=IN)),
    "groups": lambda: (packed(64), packed(64, group_size=64)),
    "biases of packed ones": lambda: (packed(64, bias=True), packed(64)),
    "blocks of a kernel": lambda: (packed(64), packed(40)),
}


@pytest.mark.parametrize("by", DIFFERENT)
def test_layers_that_cannot_be_joined_are_multiplied_apart(by: str) -> None:
    layers = DIFFERENT[by]()
    inputs = random(3, IN, seed=9).to(layers[0].weight.dtype if isinstance(layers[0], nn.Linear) else torch.bfloat16)
    expected, before = outputs(layers, inputs), live_bytes(nn.ModuleList(layers))
    product = together(layers)
    assert isinstance(product, Apart)
    assert torch.equal(product(inputs), expected)
    assert live_bytes(nn.ModuleList(layers)) == before


def test_a_layer_that_stands_in_two_sets_stays_where_it_is() -> None:
    one, shared, other = dense(64), dense(64), dense(64)
    inputs = random(3, IN, seed=9)
    expected = [outputs((one, shared), inputs), outputs((shared, other), inputs)]
    made = products([(one, shared), (shared, other)])
    assert all(isinstance(each, Apart) for each in made)
    assert all(torch.equal(each(inputs), found) for each, found in zip(made, expected, strict=True))
    assert len(storages((one, shared, other))) == 3


def test_blocks_that_share_their_layers_share_a_product() -> None:
    layers, own = (dense(64), dense(64)), (dense(128), dense(64))
    first, second, third = products([layers, own, layers])
    assert first is third
    assert first is not second
    assert len(storages(layers)) == 1
    assert len(storages((*layers, *own))) == 2


def test_a_layer_of_another_kind_is_called_as_it_is() -> None:
    layer = nn.Bilinear(2, 2, 2)
    assert alone(layer) is layer
    assert alone(quarter := type("Quarter", (nn.Linear,), {})(4, 4)) is quarter  # it may multiply otherwise
