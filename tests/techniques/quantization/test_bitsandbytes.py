"""bitsandbytes: the library quantizes the weights in memory, and reads its own format back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization import bitsandbytes
from squeeze.techniques.quantization.bitsandbytes import Float4, LLMInt8
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize("technique", [LLMInt8(6.0), Float4("nf4", False), Float4("nf4", True), Float4("fp4", False)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reloads_bit_for_bit(name: str, technique: LLMInt8 | Float4, tmp_path: Path) -> None:
    subject = technique.apply(tiny_subject(name, "bfloat16"), NO_DATA)
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path)
    assert torch.equal(subject.model(TOKEN_IDS)[0], loaded.model(TOKEN_IDS)[0])
    assert "quantization_config" in json.loads((tmp_path / "config.json").read_text())
    assert loaded.claims["parameters"] == count_parameters(tiny_model(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_linear_layers_of_the_blocks_are_quantized_and_no_others(name: str) -> None:
    expected = architecture.block_linears(tiny_model(name)).keys()
    model = Float4("nf4", False).apply(tiny_subject(name, "bfloat16"), NO_DATA).model
    packed = {path for path, layer in architecture.linears(model).items() if layer.weight.dtype == torch.uint8}
    assert packed == set(expected)


def test_nf4_has_sixteen_levels_in_each_block_of_64() -> None:
    model = Float4("nf4", False).apply(tiny_subject("llama", "bfloat16"), NO_DATA).model
    layer = next(iter(architecture.block_linears(model).values()))
    weight = layer(torch.eye(64, dtype=torch.bfloat16)).T  # (out_features, 64): one block a row
    assert all(len(row.unique()) <= 16 for row in weight)
    original = architecture.weight(next(iter(architecture.block_linears(tiny_model("llama", "bfloat16")).values())))
    assert (weight - original).norm() < 0.12 * original.norm()


def test_double_quantization_stores_8_bit_scales(tmp_path: Path) -> None:
    """Each block of 64 weights has one scale, of 32 bits or of 8."""
    weights = sum(layer.weight.numel() for layer in architecture.block_linears(tiny_model("llama")).values())
    scales = {}
    for double in (False, True):
        artifact.save(Float4("nf4", double).apply(tiny_subject("llama", "bfloat16"), NO_DATA), tmp_path / str(double))
        stored = load_file(tmp_path / str(double) / "model.safetensors")
        scales[double] = {name: tensor for name, tensor in stored.items() if name.endswith("weight.absmax")}
    assert sum(tensor.numel() for tensor in scales[False].values()) == weights // 64
    assert {tensor.dtype for tensor in scales[False].values()} == {torch.float32}
    assert {tensor.dtype for tensor in scales[True].values()} == {torch.uint8}


def test_the_threshold_is_the_one_asked_for(tmp_path: Path) -> None:
    artifact.save(LLMInt8(3.5).apply(tiny_subject("llama", "bfloat16"), NO_DATA), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["llm_int8_threshold"] == 3.5
    layer = next(iter(architecture.block_linears(artifact.load(tmp_path).model).values()))
    assert layer.state.threshold == 3.5


def test_weights_in_memory_are_what_is_quantized() -> None:
    pruned = Magnitude(0.5).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    zeros = {name: layer.dequantize() == 0 for name, layer in pruned.model.named_modules() if hasattr(layer, "nonzero")}
    both = Float4("nf4", False).apply(pruned, NO_DATA)
    assert len(zeros) == 14
    assert both.claims["sparsity"] == 0.5
    for name, zero in zeros.items():
        layer = both.model.get_submodule(name)
        weight = layer(torch.eye(layer.in_features, dtype=torch.bfloat16)).T
        assert (weight[zero] == 0).all()


def test_what_it_packed_cannot_be_compressed_again() -> None:
    subject = LLMInt8(6.0).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    with pytest.raises(Unsupported, match="Linear8bitLt"):
        RoundToNearest(4, 32, True).apply(subject, NO_DATA)


def test_a_shape_that_the_cpu_kernel_cannot_take_is_refused_before_any_work() -> None:
    subject = tiny_subject("llama", "bfloat16")
    name = next(iter(architecture.block_linears(subject.model)))
    architecture.replace(subject.model, name, nn.Linear(64, 40, dtype=torch.bfloat16))
    with pytest.raises(Unsupported, match=r"40 x 64.* multiples of 32 x 64"):
        Float4("nf4", False).apply(subject, NO_DATA)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(Unsupported, match="'int4'; expected 'nf4' or 'fp4'"):
        Float4("int4", False).apply(tiny_subject("llama"), NO_DATA)


@pytest.mark.parametrize("technique", [LLMInt8(6.0), Float4("nf4", False)])
def test_where_the_library_is_missing_it_says_how_to_get_it(
    technique: LLMInt8 | Float4, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="pip install bitsandbytes"):
        technique.apply(tiny_subject("llama"), NO_DATA)
