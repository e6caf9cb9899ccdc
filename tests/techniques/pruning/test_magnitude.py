"""Magnitude pruning takes the smallest weights of each layer, as many as it says."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_compressed, layer_specs
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude, global_shares
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


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchs_own_pruning_takes_the_same_weights(name: str, scope: Literal["layer", "global"]) -> None:
    theirs = architecture.block_linears(uneven(tiny_subject(name)).model)
    if scope == "global":
        prune.global_unstructured(
            [(layer, "weight") for layer in theirs.values()], pruning_method=prune.L1Unstructured, amount=0.2
        )
    else:
        for layer in theirs.values():
            prune.l1_unstructured(layer, "weight", amount=0.2)
    ours = Magnitude(0.2, scope=scope).apply(uneven(tiny_subject(name)), NO_DATA)
    for path, layer in theirs.items():
        expected = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        assert torch.equal(ours.model.get_submodule(path).dequantize(), expected)
    assert ours.claims == {"sparsity": 0.2}


def uneven(subject: Subject) -> Subject:
    """A model whose layers have weights of unlike sizes."""
    for number, layer in enumerate(architecture.block_linears(subject.model).values()):
        architecture.weight(layer).mul_(1 + number % 3)
    return subject


def test_one_threshold_takes_most_from_the_layers_of_small_weights() -> None:
    small, large = torch.tensor([[1.0, -2], [3, 4]]), torch.tensor([[-2.5, 5, 6], [7, 8, 9]])
    assert global_shares([small, large], 0.3) == [0.5, 1 / 6]
    assert global_shares([small, large], 0.5) == [1.0, 1 / 6]
    assert global_shares([small, large], 0.0) == [0.0, 0.0]


def test_of_equals_at_the_threshold_the_first_are_taken() -> None:
    ones = [torch.ones(2, 2), torch.ones(3, 2), torch.zeros(1, 2)]
    assert global_shares(ones, 0.25) == [0.25, 0.0, 1.0]
    assert global_shares(ones, 0.75) == [1.0, 3 / 6, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_global_share_is_exact_over_all_layers_together(dtype: str) -> None:
    subject = Magnitude(0.3, scope="global").apply(uneven(tiny_subject("llama", dtype)), NO_DATA)
    weights = [module.dequantize() for module in subject.model.modules() if is_compressed(module)]
    assert sum(int((each == 0).sum()) for each in weights) == round(0.3 * sum(each.numel() for each in weights))


@pytest.mark.parametrize("run", [4, 8])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_of_each_run_of_neighbours_is_gone(name: str, run: int) -> None:
    originals = architecture.block_linears(tiny_model(name))
    subject = Magnitude(0.5, run).apply(tiny_subject(name), NO_DATA)
    for path, original in originals.items():
        before = architecture.weight(original).reshape(-1, run)
        after = subject.model.get_submodule(path).dequantize().reshape(-1, run)
        assert ((after == 0).sum(1) == run // 2).all()
        kept = after != 0
        assert torch.equal(after[kept], before[kept])
        highest_lost = before.abs().masked_fill(kept, 0).amax(1)
        assert (highest_lost <= before.abs().masked_fill(~kept, torch.inf).amin(1)).all()


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (Magnitude(0.5, 3), "run 3 does not divide in_features 64"),
        (Magnitude(0.3, 4), r"sparsity 0\.3 of 4 weights is 1\.2"),
        (Magnitude(0.5, 4, "global"), "a global threshold leaves no pattern of 4 weights; use run=null or scope=layer"),
        (Magnitude(0.5, scope="model"), "no scope 'model'; expected 'layer' or 'global'"),  # type: ignore[arg-type]
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(technique: Magnitude, message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        technique.apply(subject, NO_DATA)
    assert not layer_specs(subject.model)


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
