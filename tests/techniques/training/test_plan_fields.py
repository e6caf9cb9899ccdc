"""Distillation and recovery train as their fields say: in less memory, by another schedule, until nothing is gained."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import blocks
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.quantization.qat import QAT
from squeeze.techniques.training.distillation import Distillation
from squeeze.techniques.training.finetune import Finetune
from squeeze.techniques.training.lora import LoRA
from squeeze.techniques.training.recover import Recover
from tests.tiny import tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
PLAN = {"training_steps": 4, "windows": 2, "learning_rate": 3e-3}
RECIPES = {
    "distillation": partial(Distillation, **PLAN),
    "distillation, hidden": partial(Distillation, match="hidden", **PLAN),
    "distillation, attention": partial(Distillation, match="attention", **PLAN),
    "recovery": partial(Recover, how="full", **PLAN),
    "recovery, lora": partial(Recover, how="lora", rank=4, lora_alpha=8, **PLAN),
}


def calibration(dtype: str = "float32") -> CalibrationText:
    """The text, and a teacher of other weights than the student's."""
    return CalibrationText(TOKEN_IDS, load_baseline=lambda: tiny_model("llama", dtype, seed=1))


def weights(subject: Subject) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recomputing_blocks_runs_them_twice_and_changes_nothing(recipe: str, dtype: str) -> None:
    found, runs = [], []
    for recompute in (False, True):
        subject, begun = tiny_subject("llama", dtype), []
        attention = blocks(subject.model)[0].self_attn
        attention.register_forward_pre_hook(lambda *_, begun=begun: begun.append(torch.is_grad_enabled()))
        trained = RECIPES[recipe](recompute=recompute).apply(subject, calibration(dtype))
        found.append(weights(trained))
        runs.append(sum(begun))
        assert not any("forward" in block.__dict__ for block in blocks(trained.model))
    assert runs == [4, 8]
    assert same(*found)
    assert not same(found[0], weights(tiny_subject("llama", dtype)))


@pytest.mark.parametrize("recipe", ["distillation", "recovery"])
def test_another_schedule_trains_other_weights(recipe: str) -> None:
    found = [
        weights(RECIPES[recipe](schedule=schedule).apply(tiny_subject("llama"), calibration()))
        for schedule in ("linear", "cosine", "constant", "constant")
    ]
    assert [same(found[-1], each) for each in found] == [False, False, True, True]
    assert not same(found[0], found[1])


@pytest.mark.parametrize("recipe", ["distillation", "recovery"])
def test_with_patience_a_training_that_only_harms_is_undone(recipe: str) -> None:
    """From next to its teacher, at a rate that throws it far away; claimed are the tokens that were read."""
    subject, workplace = tiny_subject("llama"), Workplace()
    for parameter in subject.model.parameters():
        parameter.mul_(1.01)
    before = weights(subject)
    text = CalibrationText(TOKEN_IDS, held_out=HELD_OUT, workplace=workplace, load_baseline=lambda: tiny_model("llama"))
    impatient = RECIPES[recipe](training_steps=20, learning_rate=0.5, patience=1)
    trained = impatient.apply(subject, text)
    assert same(weights(trained), before)
    assert [point.step for point in workplace.curve if point.held_out is not None] == [0, 2]
    assert trained.claims["training_tokens"] == 2 * 2 * 32


@pytest.mark.parametrize("recipe", ["distillation", "recovery"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schedule": "cosin"}, "schedule='cosin' is not known; choose from: linear, cosine, constant"),
        ({"patience": 0}, "patience=0 is not allowed, expected at least 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_work(recipe: str, fields: dict[str, Any], reason: str) -> None:
    def loaded() -> torch.nn.Module:
        raise AssertionError

    subject = tiny_subject("llama")
    before, dtypes = weights(subject), {tensor.dtype for tensor in subject.model.parameters()}
    with pytest.raises(Unsupported, match=reason):
        RECIPES[recipe](**fields).apply(subject, replace(calibration(), load_baseline=loaded))
    assert same(weights(subject), before)
    assert {tensor.dtype for tensor in subject.model.parameters()} == dtypes


NO_STEPS = {"training_steps": 0, "windows": 1, "learning_rate": 1e-3}
ADAPTERS = {"rslora": False, "dora": False, "start": "kaiming", "targets": "linear", "loss": "next_token"}
TRAINERS = [
    Finetune(**NO_STEPS),
    QAT(4, 32, True, learned_step=False, temperature=1.0, **NO_STEPS),
    LoRA(rank=4, lora_alpha=8, merge=False, **ADAPTERS, **NO_STEPS),
    Recover("full", **NO_STEPS),
    Distillation(**NO_STEPS),
]


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: type(trainer).__name__)
def test_a_plan_that_cannot_be_leaves_the_model_as_it_was(trainer: Any) -> None:
    subject = tiny_subject("llama")
    before, kinds = weights(subject), [type(module) for module in subject.model.modules()]
    with pytest.raises(Unsupported, match="training_steps"):
        trainer.apply(subject, calibration())
    assert [type(module) for module in subject.model.modules()] == kinds
    assert same(weights(subject), before)
