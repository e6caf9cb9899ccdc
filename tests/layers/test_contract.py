"""A later step sees float layers with the values that earlier steps left."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears, is_compressed
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compressed_layers_come_back_dense(name: str) -> None:
    subject = RoundToNearest(4, 32, True).apply(tiny_subject(name), NO_DATA)
    token_ids = torch.arange(24).reshape(2, 12)
    before = subject.model(token_ids)[0]
    names = list(architecture.block_linears(tiny_model(name)))
    layers = float_linears(subject.model)
    assert list(layers) == names
    assert all(architecture.weight(layer).is_floating_point() for layer in layers.values())
    assert torch.allclose(subject.model(token_ids)[0], before, atol=1e-5)


def test_pruned_weights_stay_zero_when_they_are_quantized_next() -> None:
    pruned = Magnitude(0.5).apply(tiny_subject("llama"), NO_DATA)
    zeros = {name: layer.dequantize() == 0 for name, layer in _layers(pruned.model).items()}
    both = RoundToNearest(4, 32, False).apply(pruned, NO_DATA)
    assert both.claims == {"sparsity": 0.5, "bits": 4, "group_size": 32, "symmetric": False}
    layers = _layers(both.model)
    assert layers.keys() == zeros.keys()
    for name, layer in layers.items():
        assert (layer.dequantize()[zeros[name]] == 0).all()


def test_a_model_without_float_layers_is_refused() -> None:
    model = tiny_model("llama")
    for name, layer in architecture.block_linears(model).items():
        packed = torch.nn.Parameter(torch.zeros_like(layer.weight, dtype=torch.uint8), requires_grad=False)
        architecture.replace(model, name, torch.nn.Linear(1, 1))
        model.get_submodule(name).weight = packed
    with pytest.raises(Unsupported, match="no float layers"):
        float_linears(model)


def _layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if is_compressed(module)}
