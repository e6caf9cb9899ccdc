"""Low-rank changes beside a layer: they compute what peft computes, and are counted once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora as of_peft
from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import compressed_layers, count_parameters, float_linears, linear, matrices
from squeeze.layers.int8 import Int8Linear
from squeeze.layers.lora import LoraLinear, set_aside
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.bitsandbytes import Float4
from tests.tiny import tiny_model, tiny_subject

RANK, ALPHA = 4, 6
OPTIONS: list[dict[str, Any]] = [{}, {"use_rslora": True}, {"use_dora": True}, {"use_rslora": True, "use_dora": True}]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(bias: bool = True) -> nn.Linear:
    return linear(drawn(48, 64) / 8, drawn(48, seed=1) if bias else None)


def transposed() -> nn.Module:
    layer = Conv1D(48, 64)
    layer.weight.data, layer.bias.data = drawn(64, 48) / 8, drawn(48, seed=1)
    return layer


def quantized() -> QuantizedLinear:
    weight = drawn(48, 64) / 8
    grid = affine.fit(weight, 4, 32, symmetric=True)
    return QuantizedLinear.of(grid.quantize(weight), grid, drawn(48, seed=1), torch.float32)


def adapter(base: nn.Module, *, dora: bool = False, dtype: torch.dtype = torch.float32) -> LoraLinear:
    lengths = 1 + drawn(48, seed=4).abs() if dora else None
    return LoraLinear.of(base, drawn(RANK, 64, seed=2), drawn(48, RANK, seed=3), lengths, alpha=ALPHA, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [plain, transposed])
def test_it_computes_what_peft_computes_of_the_same_tensors(make: Any, options: Any, dtype: torch.dtype) -> None:
    base = make().to(dtype)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, fan_in_fan_out=make is transposed, **options)
    theirs = of_peft.Linear(base, "default", config, r=RANK, lora_alpha=ALPHA)
    a, b = drawn(RANK, 64, seed=2), drawn(48, RANK, seed=3)
    theirs.lora_A["default"].weight.data, theirs.lora_B["default"].weight.data = a, b
    lengths = None
    if "use_dora" in options:
        lengths = 1 + drawn(48, seed=4).abs()
        theirs.lora_magnitude_vector["default"].weight.data = lengths
    ours = LoraLinear.of(base, a, b, lengths, alpha=ALPHA, rslora="use_rslora" in options, dtype=dtype)
    inputs = drawn(2, 3, 64, seed=5).to(dtype)
    with torch.no_grad():
        expected, found = theirs(inputs), ours(inputs)
    assert found.dtype == dtype
    assert (found - base(inputs)).abs().max() > 0.1  # the change is seen
    assert torch.allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("make", [plain, transposed, quantized])
def test_the_matrix_it_shows_is_the_one_it_multiplies_with(make: Any, dora: bool) -> None:
    layer = adapter(make(), dora=dora)
    assert layer.bias is not None
    units = layer(torch.eye(64)) - layer.bias
    assert torch.allclose(layer.dequantize(), units.T, atol=1e-4)
    before = layer(drawn(5, 64, seed=6))
    layer.prepare()
    assert torch.allclose(layer(drawn(5, 64, seed=6)), before, atol=1e-5)


def test_it_is_as_real_as_its_base_and_takes_the_bits_of_both() -> None:
    beside = 8 * 4 * RANK * (64 + 48) / (64 * 48)  # A and B in float32
    for base, memory, compute, bits in (
        (plain(), False, False, 32),
        (quantized(), True, False, 4),
        (Int8Linear.of(drawn(48, 64), None), True, True, 8),
        (SparseLinear.of(drawn(48, 64), None), False, False, 33),
    ):
        layer = adapter(base)
        assert (layer.memory_real, layer.compute_real) == (memory, compute)
        assert layer.running_bits == pytest.approx(bits + beside)


def test_it_stands_for_one_matrix_however_it_is_made() -> None:
    model, expected = tiny_model("llama"), count_parameters(tiny_model("llama"))
    grid = affine.fit(drawn(64, 64), 4, 32, symmetric=True)
    base = QuantizedLinear.of(grid.quantize(drawn(64, 64)), grid, None, torch.float32)
    pair = torch.zeros(2, 64), torch.zeros(64, 2)
    name = "model.layers.0.self_attn.q_proj"
    architecture.replace(model, name, LoraLinear.of(base, *pair, alpha=2, dtype=torch.float32))
    assert count_parameters(model) == expected
    assert [type(layer) for layer in compressed_layers(model)] == [LoraLinear]
    assert dict(matrices(model)).keys() == architecture.block_linears(tiny_model("llama")).keys()


@torch.no_grad()
def test_a_later_step_sees_base_and_change_as_one_float_layer() -> None:
    model = tiny_model("llama")
    tokens = torch.arange(20)[None]
    for name, layer in architecture.block_linears(model).items():
        rows, columns = layer.weight.shape
        change = drawn(2, columns) / 10, drawn(rows, 2) / 10
        architecture.replace(model, name, LoraLinear.of(layer, *change, alpha=2, dtype=torch.float32))
    before = model(tokens).logits
    names = list(architecture.block_linears(tiny_model("llama")))
    assert float_linears(model) == names
    assert {type(model.get_submodule(name)) for name in names} == {nn.Linear}
    assert torch.allclose(model(tokens).logits, before, atol=1e-4)


def test_a_later_step_refuses_a_change_of_what_a_library_has_packed() -> None:
    model = Float4("nf4", False).apply(tiny_subject("llama", "bfloat16"), CalibrationText.empty()).model
    name, layer = next(iter(architecture.block_linears(model).items()))
    pair = torch.zeros(2, layer.in_features), torch.zeros(layer.out_features, 2)
    architecture.replace(model, name, LoraLinear.of(layer, *pair, alpha=2, dtype=torch.bfloat16))
    with pytest.raises(Unsupported, match="Linear4bit"):
        float_linears(model)
    assert isinstance(model.get_submodule(name), LoraLinear)


def test_bases_are_in_the_places_of_their_adapters_for_a_while() -> None:
    model = tiny_model("gpt2")
    name, layer = next(iter(architecture.block_linears(model).items()))
    rows, columns = architecture.weight(layer).shape
    change = LoraLinear.of(layer, torch.zeros(2, columns), torch.zeros(rows, 2), alpha=2, dtype=torch.float32)
    architecture.replace(model, name, change)
    with set_aside(model) as adapters:
        assert adapters == {name: change}
        assert model.get_submodule(name) is layer
    assert model.get_submodule(name) is change


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((4, 60), (48, 4)), "does not fit a layer of 48 x 64"),
        (((4, 64), (48, 5)), "does not fit a layer of 48 x 64"),
        (((0, 64), (48, 0)), "does not fit a layer of 48 x 64"),
        (((4, 64), (48, 4), (1,)), "does not fit a layer of 48 x 64"),
    ],
)
def test_tensors_of_other_shapes_are_refused(shapes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraLinear.of(plain(), *map(torch.zeros, shapes), alpha=1, dtype=torch.float32)


def test_what_is_no_linear_layer_is_no_base() -> None:
    with pytest.raises(ValueError, match="a LayerNorm is no linear layer"):
        LoraLinear.of(nn.LayerNorm(64), torch.zeros(1, 64), torch.zeros(64, 1), alpha=1, dtype=torch.float32)
