"""Static int8: a layer's codes cover just what the calibration text made its inputs be."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import SqueezeError
from squeeze.layers.contract import layer_specs
from squeeze.layers.int8 import Int8Linear
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.static_int8 import StaticInt8
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ranges_are_those_of_the_float_models_inputs(name: str) -> None:
    original, seen = tiny_model(name), {}
    for layer_name, layer in architecture.block_linears(original).items():

        def note(_, inputs, layer_name=layer_name) -> None:
            seen[layer_name] = min(float(inputs[0].min()), 0.0), max(float(inputs[0].max()), 0.0)

        layer.register_forward_pre_hook(note)
    expected = original(TOKEN_IDS)[0]
    subject = StaticInt8().apply(tiny_subject(name), CALIBRATION)
    assert len(seen) == len(layer_specs(subject.model))
    for layer_name, (low, high) in seen.items():
        layer = subject.model.get_submodule(layer_name)
        assert isinstance(layer, Int8Linear)
        assert float(layer.input_scale) == pytest.approx((high - low) / 255, rel=1e-4)
        assert int(layer.input_zero) == pytest.approx(-128 - low / float(layer.input_scale), abs=0.51)
    error = (subject.model(TOKEN_IDS)[0] - expected).norm() / expected.norm()
    assert error < 0.08
    assert subject.claims == {"bits": 8, "activation_bits": 8}


def test_it_cannot_do_without_calibration_text() -> None:
    with pytest.raises(SqueezeError, match="calibration has no tokens"):
        StaticInt8().apply(tiny_subject("llama"), CalibrationText.empty())
