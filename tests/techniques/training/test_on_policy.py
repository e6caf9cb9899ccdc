"""On-policy distillation: the student learns from what it has just written, the same whoever kills it in between."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.models.surgery import keep_blocks
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import Objective, distilled
from squeeze.techniques.training import on_policy
from squeeze.techniques.training.distillation import Distillation
from squeeze.techniques.training.on_policy import OnPolicy, drawing, on_written, written
from tests.tiny import CAUSAL, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (5, 32), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
SEED = 3
OBJECTIVE = Objective("forward", 1.0)


class Killed(BaseException):
    """The process ends here."""


def technique(**fields: Any) -> OnPolicy:
    schedule = {"training_steps": 6, "windows": 2, "learning_rate": 1e-3}
    return OnPolicy(**{"own_share": 0.5, "divergence": "forward", "temperature": 1.0, **schedule, **fields})


def calibration(folder: Path | None = None) -> CalibrationText:
    return CalibrationText(
        TOKEN_IDS, SEED, workplace=Workplace(folder), held_out=HELD_OUT, load_baseline=partial(tiny_model, "llama")
    )


def student(name: str = "llama", dtype: str = "float32") -> Subject:
    subject = tiny_subject(name, dtype)
    keep_blocks(subject.model, [0])
    return subject


def same(one: Subject, other: Subject) -> bool:
    weights = one.model.state_dict(), other.model.state_dict()
    return weights[0].keys() == weights[1].keys() and all(weights[0][key].equal(weights[1][key]) for key in weights[0])


@torch.no_grad()
def said(model: nn.Module, prompts: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """What a model says at temperature 1, without a cache: the whole text is read again for each token."""
    token_ids = prompts
    while token_ids.shape[1] < length:
        probabilities = model(token_ids).logits[:, -1].softmax(-1)
        token_ids = torch.cat([token_ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scope", ["linear", "all"])
def test_without_own_texts_it_is_offline_distillation_step_for_step(scope: Any, dtype: str) -> None:
    text = replace(calibration(), load_baseline=lambda: tiny_model("llama", dtype))
    found = technique(own_share=0, scope=scope).apply(student(dtype=dtype), text)
    offline = Distillation(training_steps=6, windows=2, learning_rate=1e-3, scope=scope)
    expected = offline.apply(student(dtype=dtype), text)
    assert not same(found, student(dtype=dtype))
    assert same(found, expected)
    assert found.claims["written_tokens"] == 0
    assert found.claims.items() >= expected.claims.items()


@pytest.mark.parametrize("name", CAUSAL)
def test_what_it_writes_through_the_cache_is_what_it_says_without_one(name: str) -> None:
    model, prompts = student(name).model, TOKEN_IDS[:, :3]
    found = written(model, prompts, 20, drawing(SEED))
    assert found.equal(said(model, prompts, 20, drawing(SEED)))
    assert found[:, :3].equal(prompts)
    assert not found.equal(written(model, prompts, 20, drawing(SEED + 1)))


def test_it_trains_on_what_the_student_says_at_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 32 tokens gives four texts of 8, which begin with two of the window's."""
    seen: list[Tensor] = []

    def spy(model: nn.Module, teacher: nn.Module, token_ids: Tensor, prompt: int, objective: Objective) -> Tensor:
        step = len(seen)
        texts = TOKEN_IDS[[2 * step % 5, (2 * step + 1) % 5]].reshape(8, 8)
        assert token_ids.equal(said(model, texts[:, :2], 8, drawing(SEED, step, 2 * step)))
        assert prompt == 2
        seen.append(token_ids)
        return on_written(model, teacher, token_ids, prompt, objective)

    monkeypatch.setattr(on_policy, "on_written", spy)
    subject = technique(own_share=1, learning_rate=0.01).apply(student(), calibration())
    assert len(seen) == 6
    assert subject.claims["written_tokens"] == 6 * 8 * 6
    assert subject.claims["trainable_parameters"] == sum(each.numel() for each in subject.model.parameters())
    untrained = said(student().model, seen[5][:, :2], 8, drawing(SEED, 5, 10))
    assert not seen[5].equal(untrained)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_only_what_was_written_counts(kind: Any) -> None:
    model, teacher = tiny_model("llama", seed=1), tiny_model("llama")
    parameter = next(p for name, p in model.named_parameters() if "q_proj" in name).requires_grad_()
    p, q = (net(TOKEN_IDS).logits[:, 11:31].log_softmax(-1) for net in (teacher, model))
    (low, high) = (q, p) if kind == "forward" else (p, q)
    expected = (high.exp() * (high - low)).sum(-1).mean()
    found = on_written(model, teacher, TOKEN_IDS, 12, Objective(kind, 1.0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, parameter)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_it_comes_nearer_to_its_teacher_on_text_that_it_did_not_train_on() -> None:
    trained = technique(own_share=1, training_steps=30).apply(student(), calibration())
    with torch.no_grad():
        before, after = (
            distilled(subject.model, tiny_model("llama"), HELD_OUT, OBJECTIVE) for subject in (student(), trained)
        )
    assert after < 0.8 * before


def test_what_was_killed_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With texts of both kinds before and after the kill; nothing that was drawn before is drawn again."""
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    mixed = technique(training_steps=10)
    writing = [step for step in range(10) if mixed.writes(SEED, step)]
    assert 3 <= len(writing) <= 7
    texts: list[Tensor] = []

    def spy(*arguments: Any, dies: int | None = None) -> Tensor:
        if len(texts) == dies:
            raise Killed
        texts.append(written(*arguments))
        return texts[-1]

    monkeypatch.setattr(on_policy, "written", spy)
    whole = mixed.apply(student(), calibration())
    all_texts = texts.copy()
    assert len(all_texts) == len(writing)
    texts.clear()
    monkeypatch.setattr(on_policy, "written", partial(spy, dies=2))
    with pytest.raises(Killed):
        mixed.apply(student(), calibration(tmp_path))
    texts.clear()
    monkeypatch.setattr(on_policy, "written", spy)
    continued = mixed.apply(student(), calibration(tmp_path))
    assert len(texts) == len(writing) - 2
    assert all(one.equal(other) for one, other in zip(texts, all_texts[2:], strict=True))
    assert same(continued, whole)
    assert continued.claims == whole.claims


def test_about_its_share_of_the_steps_is_its_own() -> None:
    for share in (0.25, 0.5):
        own = sum(technique(own_share=share).writes(SEED, step) for step in range(400))
        assert own == pytest.approx(400 * share, abs=40)  # four standard deviations


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"own_share": 1.5}, r"own_share is 1.5, expected a number from 0 to 1"),
        ({"prompt_share": 1.0}, r"prompt_share is 1, expected a number from 0 to below 1"),
        ({"texts": 3}, r"a window of 32 tokens cannot be parted into 3 texts"),
        ({"texts": 32}, r"a window of 32 tokens cannot be parted into 32 texts"),
    ],
)
def test_what_cannot_be_is_refused_before_a_teacher_is_loaded(fields: dict[str, Any], told: str) -> None:
    def loaded() -> nn.Module:
        raise AssertionError

    subject = student()
    with pytest.raises(Unsupported, match=told):
        technique(**fields).apply(subject, replace(calibration(), load_baseline=loaded))
    assert same(subject, student())
