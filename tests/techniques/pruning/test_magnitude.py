"""Magnitude pruning takes the smallest weights of each layer, as many as it says."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import layer_specs
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_the_smallest_weights_of_each_layer_are_gone(name: str, sparsity: float) -> None:
    originals = architecture.block_linears(tiny_model(name))
    subject = Magnitude(sparsity).apply(tiny_subject(name), NO_DATA)
    for path, original in originals.items():
        layer = subject.model.get_submodule(path)
        before, after = architecture.weight(original), layer.dequantize()
        pruned = after == 0
        assert int(pruned.sum()) == round(sparsity * before.numel())
        assert layer.stored_nonzero() == before.numel() - int(pruned.sum())
        assert torch.equal(after[~pruned], before[~pruned])
        assert before[pruned].abs().max() <= before[~pruned].abs().min()
    assert subject.claims == {"sparsity": sparsity}


def test_the_model_computes_with_the_pruned_weights() -> None:
    token_ids = torch.arange(24).reshape(2, 12)
    expected = tiny_model("gpt2")
    for layer in architecture.block_linears(expected).values():
        weight = architecture.weight(layer)
        threshold = weight.abs().flatten().sort().values[weight.numel() // 2]
        weight.copy_(torch.where(weight.abs() < threshold, 0, weight))
    subject = Magnitude(0.5).apply(tiny_subject("gpt2"), NO_DATA)
    assert torch.allclose(subject.model(token_ids)[0], expected(token_ids)[0], atol=1e-5)


def test_no_sparsity_changes_nothing() -> None:
    token_ids = torch.arange(24).reshape(2, 12)
    subject = Magnitude(0.0).apply(tiny_subject("llama"), NO_DATA)
    assert torch.allclose(subject.model(token_ids)[0], tiny_model("llama")(token_ids)[0], atol=1e-6)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50])
def test_impossible_sparsity_is_refused_before_any_work(sparsity: float) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=rf"{sparsity}; expected 0 <= sparsity < 1"):
        Magnitude(sparsity).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
