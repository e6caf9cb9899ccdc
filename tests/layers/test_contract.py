"""A later step sees float layers with the values that earlier steps left."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch
from torch import nn

from squeeze import layers
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears, is_compressed, layer_specs, spec, weight_numel
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
    assert float_linears(subject.model) == names
    assert all(architecture.weight(subject.model.get_submodule(name)).is_floating_point() for name in names)
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


def layer_classes() -> list[type[nn.Module]]:
    """All modules of squeeze/layers that stand for a matrix: their constructors say of what size."""
    modules = [
        importlib.import_module(f"{layers.__name__}.{found.name}") for found in pkgutil.iter_modules(layers.__path__)
    ]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == module.__name__
        and {"in_features", "out_features"} <= inspect.signature(kind).parameters.keys()
        and not getattr(kind, "is_composite", False)  # whose parts keep it: test_factors.py
    ]


def arguments(kind: type[nn.Module], flag: bool) -> dict[str, Any]:
    """A value for each argument of a layer's constructor, by its annotation."""
    values: dict[str, Any] = {"int": 8, "float": 2.0, "bool": flag, "str": "bfloat16"}
    sizes = {"in_features": 64, "out_features": 48}
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: sizes.get(each.name, values[each.annotation]) for each in parameters}


def test_there_are_layers_to_look_at() -> None:
    assert len(layer_classes()) >= 7


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("kind", layer_classes(), ids=lambda kind: kind.__name__)
def test_every_layer_keeps_the_contract(kind: type[nn.Module], flag: bool) -> None:
    given = arguments(kind, flag)
    layer = kind(**given)
    assert is_compressed(layer)
    assert spec(layer) == given
    again = kind(**spec(layer))
    assert spec(again) == given
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in layer.state_dict().items()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in again.state_dict().items()}
    assert weight_numel(layer) == 64 * 48
    assert (layer.bias is not None) == given["bias"]
    assert layer.opaque_bytes == 0  # before it is prepared
    assert isinstance(layer.memory_real, bool)
    assert isinstance(layer.compute_real, bool)
    (described,) = layer_specs(nn.Sequential(layer)).values()
    assert described == {"_target_": f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}", **given}


def _layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if is_compressed(module)}
