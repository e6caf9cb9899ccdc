"""Our stored form of PyTorch's dynamic int8 computes exactly what PyTorch's own computes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import dynamic_int8
from squeeze.layers.contract import layer_specs, linear, prepare_layers
from squeeze.layers.dynamic_int8 import DynamicInt8Linear, _overflows, quantized_weight
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.tiny import tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["llama", "opt"])  # whose linear layers are all nn.Linear; without and with biases
def test_logits_are_those_of_quantize_dynamic(name: str, per_channel: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao import quantization

        config = quantization.per_channel_dynamic_qconfig if per_channel else quantization.default_dynamic_qconfig
        model = tiny_model(name)
        theirs = quantization.quantize_dynamic(model, {nn.Linear: config})
        theirs.lm_head = model.lm_head
    ours = TorchDynamic(per_channel, activation_bits=7).apply(tiny_subject(name), NO_DATA)
    assert torch.equal(ours.model(TOKEN_IDS)[0], theirs(TOKEN_IDS)[0])
    prepare_layers(ours.model)
    assert torch.equal(ours.model(TOKEN_IDS)[0], theirs(TOKEN_IDS)[0])


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_stored_weight_is_a_nearest_int8_weight(per_channel: bool) -> None:
    weight = torch.randn(24, 40) * torch.linspace(0.1, 3, 24)[:, None]
    layer = DynamicInt8Linear.of(quantized_weight(linear(weight, None), per_channel), None, 8)
    stored = layer.dequantize()
    largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max()
    assert ((stored - weight).abs() <= 0.51 * largest / 127).all()
    assert {name: tensor.dtype for name, tensor in layer.state_dict().items()} == {
        "codes": torch.int8,
        "scales": torch.float32,
    }
    layer.prepare()
    assert layer.codes is None
    assert torch.equal(layer.dequantize(), stored)


def test_eight_activation_bits_are_nearer_than_seven_or_refused() -> None:
    if _overflows():
        with pytest.raises(Unsupported, match="overflow"):
            TorchDynamic(True, 8).apply(tiny_subject("llama"), NO_DATA)
        return
    expected = tiny_model("llama")(TOKEN_IDS)[0]
    seven, eight = (
        float((TorchDynamic(True, bits).apply(tiny_subject("llama"), NO_DATA).model(TOKEN_IDS)[0] - expected).norm())
        for bits in (7, 8)
    )
    assert eight < 0.75 * seven
    assert seven < 0.2 * float(expected.norm())


def test_results_depend_on_the_batch() -> None:
    """What makes the artifact ``batch_dependent``: one scale serves all rows of a call."""
    weight = torch.randn(16, 64)
    layer = DynamicInt8Linear.of(quantized_weight(linear(weight, None), per_channel=True), None, 7)
    row = torch.randn(1, 64)
    assert not torch.equal(layer(row), layer(torch.cat([row, 100 * row]))[:1])


def test_a_bfloat16_model_computes_in_float32() -> None:
    subject = TorchDynamic(True, 7).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    assert subject.model.dtype == torch.float32
    assert subject.model(TOKEN_IDS)[0].dtype == torch.float32


def test_eight_bits_are_refused_where_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_int8, "_overflows", lambda: True)
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match="use activation_bits: 7"):
        TorchDynamic(True, 8).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
    TorchDynamic(True, 7).apply(subject, NO_DATA)


def test_other_activation_bits_are_refused() -> None:
    with pytest.raises(Unsupported, match="to 4 bits; expected 7 or 8"):
        TorchDynamic(True, 4).apply(tiny_subject("llama"), NO_DATA)
