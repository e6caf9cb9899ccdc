"""Pruning while training: exact zeros, the same after a kill, nearer to the teacher than pruning alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import matrices
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.recount import recount
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import Objective, divergence
from squeeze.techniques.pruning import in_training
from squeeze.techniques.pruning.gradual import Gradual
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.pruning.proximal import ProximalL1
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from tests.dying import dies_at
from tests.tiny import CAUSAL, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
PLAN = {"training_steps": 5, "windows": 2, "learning_rate": 1e-3}
TECHNIQUES: dict[str, Any] = {
    "l1": partial(ProximalL1, sparsity=0.5, penalty=0.3, **PLAN),
    "gradual": partial(Gradual, sparsity=0.5, every=1, until=0.75, **PLAN),
    "gradual_rigl": partial(Gradual, sparsity=0.5, every=1, until=0.75, regrow=0.3, **PLAN),
}


def calibration(**fields: Any) -> CalibrationText:
    return CalibrationText(TOKEN_IDS, held_out=HELD_OUT, load_baseline=lambda: tiny_model("llama"), **fields)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_layer_has_the_zeros_that_were_asked_for(technique: str, name: str, dtype: str, tmp_path: Path) -> None:
    subject = TECHNIQUES[technique](sparsity=0.55).apply(tiny_subject(name, dtype), calibration())
    layers = dict(matrices(subject.model))
    originals = architecture.block_linears(tiny_model(name, dtype))
    assert layers.keys() == originals.keys()
    for path, layer in layers.items():
        assert type(layer) is SparseLinear
        matrix = layer.dequantize()
        assert int((matrix == 0).sum()) == round(0.55 * matrix.numel())
        assert matrix.dtype == subject.model.dtype
        original = architecture.weight(originals[path])
        assert matrix.shape == original.shape
        overlap = torch.nn.functional.cosine_similarity(matrix.float().flatten(), original.float().flatten(), dim=0)
        assert overlap > 0.6, "the matrix as it was, not transposed"
        bias = architecture.bias(originals[path])
        assert bias is layer.bias is None or torch.equal(layer.bias, bias)
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    assert subject.claims == {"sparsity": 0.55, "training_tokens": 5 * 2 * 32, "trainable_parameters": weights}
    artifact.save(subject, tmp_path)
    found = recount(tmp_path, artifact.load(tmp_path, prepare=False), tiny_model(name, dtype))
    assert found.mismatches(subject.claims) == []


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_it_comes_nearer_to_its_teacher_than_cutting_alone(technique: str) -> None:
    distance = partial(divergence, teacher=tiny_model("llama"), temperature=1.0)
    cut = Magnitude(0.5).apply(tiny_subject("llama"), CalibrationText.empty())
    trained = TECHNIQUES[technique](training_steps=30, learning_rate=3e-3).apply(tiny_subject("llama"), calibration())
    with torch.no_grad():
        assert distance(trained.model, token_ids=TOKEN_IDS) < 0.8 * distance(cut.model, token_ids=TOKEN_IDS)


@pytest.mark.parametrize("call", [4, 6, 7])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_killed_training_goes_on_to_the_same_layers(
    technique: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which weights are zero is among what it goes on with: before, at and after the last pruning."""
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    steps = TECHNIQUES[technique]()
    whole = steps.apply(tiny_subject("llama"), calibration()).model.state_dict()
    dies_at(monkeypatch, in_training, "distilled", call)  # the first two look at held-out text
    with pytest.raises(KeyboardInterrupt):
        steps.apply(tiny_subject("llama"), calibration(workplace=Workplace(tmp_path)))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    continued = steps.apply(tiny_subject("llama"), calibration(workplace=Workplace(tmp_path))).model
    assert all(torch.equal(tensor, whole[name]) for name, tensor in continued.state_dict().items())


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_after_other_steps_the_teacher_is_the_whole_model(technique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = []
    real = in_training.distilled

    def spy(model: Any, teacher: Any, token_ids: torch.Tensor, objective: Objective) -> torch.Tensor:
        teachers.append(teacher)
        assert (objective.temperature, objective.alpha) == (2.0, 0.5)
        return real(model, teacher, token_ids, objective)

    monkeypatch.setattr(in_training, "distilled", spy)
    halved = Magnitude(0.25).apply(tiny_subject("llama"), CalibrationText.empty())
    trained = TECHNIQUES[technique](temperature=2.0, alpha=0.5).apply(halved, calibration())
    assert trained.claims["sparsity"] == 0.5
    for each in set(teachers):
        assert all(torch.equal(tensor, each.state_dict()[name]) for name, tensor in whole().items())


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_what_blocks_share_is_trained_and_pruned_as_one(technique: str) -> None:
    shared = SharedBlocks().apply(tiny_subject("llama"), CalibrationText.empty())
    trained = TECHNIQUES[technique]().apply(shared, calibration())
    first, second = (dict(block.named_modules()) for block in architecture.blocks(trained.model))
    layers = {name: layer for name, layer in first.items() if type(layer) is SparseLinear}
    assert len(layers) == 7
    assert all(second[name] is layer for name, layer in layers.items())
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    assert trained.claims["trainable_parameters"] == weights
    assert sum(layer.nonzero for layer in layers.values()) == weights // 2


def whole() -> dict[str, torch.Tensor]:
    return tiny_model("llama").state_dict()


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("bert", {}, "no language-modelling head"),
        ("llama", {"sparsity": 1.0}, r"cannot prune a share of 1\.0"),
        ("llama", {"training_steps": 0}, "training_steps=0 is not allowed"),
        ("llama", {"temperature": 0.0}, "temperature is 0"),
    ],
)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_what_it_cannot_do_is_refused_before_any_work(
    technique: str, name: str, fields: dict[str, Any], said: str
) -> None:
    subject: Subject = tiny_subject(name)
    before = dict(subject.model.named_modules())
    with pytest.raises(Unsupported, match=said):
        TECHNIQUES[technique](**fields).apply(subject, calibration())
    assert dict(subject.model.named_modules()) == before
