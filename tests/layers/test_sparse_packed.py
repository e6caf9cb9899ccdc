"""Codes of zeros are left out, and the layer is that of all codes again when it runs."""

from __future__ import annotations

import pytest
import torch

from squeeze.layers.affine import AffineGrid, fit
from squeeze.layers.contract import live_bytes, matrices, spec
from squeeze.layers.quantized import QuantizedLinear, put
from squeeze.layers.sparse_packed import SparsePackedLinear, leave_zeros_out
from squeeze.models import architecture
from tests.tiny import tiny_subject

OUT, IN, GROUP = 64, 128, 32


def pruned(share: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((OUT, IN), generator=generator)
    weight[torch.rand((OUT, IN), generator=generator) < share] = 0
    return weight.to(dtype)


def coded(weight: torch.Tensor, bits: int, symmetric: bool) -> QuantizedLinear:
    grid = fit(weight, bits, GROUP, symmetric)
    bias = torch.randn(OUT, generator=torch.Generator().manual_seed(1)).to(weight.dtype)
    return QuantizedLinear.of(grid.quantize(weight), grid, bias, weight.dtype)


def test_a_mask_and_the_codes_that_are_not_zero_are_stored_in_row_order() -> None:
    """By hand: two rows of four 4-bit codes, zero point 8, step 1."""
    codes = torch.tensor([[8, 9, 8, 8], [7, 8, 15, 0]], dtype=torch.uint8)
    grid = AffineGrid(4, torch.ones((2, 1), dtype=torch.bfloat16), None)
    layer = SparsePackedLinear.of(QuantizedLinear.of(codes, grid, None, torch.float32))
    state = layer.state_dict()
    assert set(state) == {"mask", "codes", "scales"}
    assert state["mask"].tolist() == [[0b0010], [0b1101]]
    assert state["codes"].tolist() == [9 | 7 << 4, 15 | 0 << 4]
    assert layer.nonzero == 4
    assert layer.code_bytes == 4
    assert layer.dequantize().tolist() == [[0, 1, 0, 0], [-1, 0, 7, -8]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_it_multiplies_as_the_layer_of_all_codes(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    weight = pruned(0.5, dtype)
    whole = coded(weight, bits, symmetric)
    layer = SparsePackedLinear.of(whole)
    assert layer.nonzero < 0.5 * OUT * IN + 4 * IN, "no weight that was pruned has a code"
    inputs = torch.randn((3, 5, IN), generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(layer.dequantize(), whole.dequantize())
    assert (layer.dequantize()[weight == 0] == 0).all()
    assert torch.equal(layer(inputs), whole(inputs))
    copy = SparsePackedLinear(**spec(layer))
    copy.load_state_dict(layer.state_dict(), strict=True)
    layer.prepare()
    whole.prepare()
    assert torch.equal(layer(inputs), whole(inputs))
    assert torch.equal(layer(inputs[0, :1]), whole(inputs[0, :1])), "a single row runs in the kernel, if there is one"
    copy.prepare()
    assert torch.equal(copy(inputs), whole(inputs))
    assert torch.equal(copy.dequantize(), whole.dequantize())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_and_no_zeros_are_ends_like_any_other(share: float) -> None:
    whole = coded(pruned(share), 4, symmetric=False)
    layer = SparsePackedLinear.of(whole)
    assert torch.equal(layer.dequantize(), whole.dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_holds_in_memory_is_what_the_running_layer_holds(dtype: torch.dtype) -> None:
    whole = coded(pruned(0.5, dtype), 4, symmetric=False)
    layer = SparsePackedLinear.of(whole)
    stored = layer.code_bytes + sum(tensor.nbytes for tensor in (whole.scales, whole.zeros, whole.bias))  # type: ignore[union-attr]
    assert live_bytes(layer) == stored
    assert layer.running_bits == 8 * layer.code_bytes / (OUT * IN)
    layer.prepare()
    whole.prepare()
    assert live_bytes(layer) == live_bytes(whole)
    assert layer.running_bits == whole.running_bits
    assert list(layer.state_dict()) == ["bias"]
    assert list(layer.modules()) == [layer]


def test_codes_are_left_out_only_where_that_is_smaller() -> None:
    subject = tiny_subject("llama")
    names = [name for name, _ in matrices(subject.model)]
    kept: dict[str, float] = {name: 0.5 if place % 2 else 0.02 for place, name in enumerate(names)}
    for name, share in kept.items():
        weight = architecture.weight(subject.model.get_submodule(name)).clone()
        generator = torch.Generator().manual_seed(len(name))
        weight[torch.rand(weight.shape, generator=generator) < share] = 0
        grid = fit(weight, 4, 32, symmetric=True)
        put(subject.model, name, grid.quantize(weight), grid)
    before = {name: layer.dequantize() for name, layer in matrices(subject.model)}  # type: ignore[operator]
    leave_zeros_out(subject.model)
    for name, layer in matrices(subject.model):
        assert isinstance(layer, SparsePackedLinear if kept[name] == 0.5 else QuantizedLinear)
        assert torch.equal(layer.dequantize(), before[name])


def test_a_layer_in_several_places_stays_one() -> None:
    subject = tiny_subject("llama")
    first, second = [name for name, _ in matrices(subject.model) if name.endswith("q_proj")][:2]
    weight = architecture.weight(subject.model.get_submodule(first)).clone()
    weight[:, ::2] = 0
    grid = fit(weight, 4, 32, symmetric=True)
    put(subject.model, first, grid.quantize(weight), grid)
    architecture.replace(subject.model, second, subject.model.get_submodule(first))
    leave_zeros_out(subject.model)
    assert subject.model.get_submodule(first) is subject.model.get_submodule(second)
    assert isinstance(subject.model.get_submodule(first), SparsePackedLinear)
