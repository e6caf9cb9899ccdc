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
from squeeze.layers.scopes import Held
from squeeze.models.subject import Subject
from squeeze.models.surgery import keep_blocks
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import Objective, distilled
from squeeze.techniques.processes import Processes
from squeeze.techniques.training import on_policy
from squeeze.techniques.training.distillation import Distillation
from squeeze.techniques.training.on_policy import OnPolicy, compared, drawing, numbered, written
from tests.tiny import CAUSAL, tiny_model, tiny_subject
from tests.unchanged import not_loaded, unchanged

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
    found = written(model, prompts, 20, [drawing(SEED)])
    assert found.equal(said(model, prompts, 20, drawing(SEED)))
    assert found[:, :3].equal(prompts)
    assert not found.equal(written(model, prompts, 20, [drawing(SEED + 1)]))


def of_both(model: nn.Module, prompts: Tensor, step: int) -> Tensor:
    """What a model says in the places of a step's two windows: four texts of 8 tokens for each, by its own number."""
    numbers = (2 * step, 2 * step + 1)
    parts = zip(numbers, prompts.chunk(2), strict=True)
    return torch.cat([said(model, part, 8, drawing(SEED, step, number)) for number, part in parts])


def test_it_trains_on_what_the_student_says_at_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 32 tokens gives four texts of 8, which begin with two of the window's."""
    seen: list[Tensor] = []

    def spy(student: Held, teacher: nn.Module, token_ids: Tensor, positions: slice, objective: Objective) -> Tensor:
        if not torch.is_grad_enabled():  # text held out
            return compared(student, teacher, token_ids, positions, objective)
        step = len(seen)
        texts = TOKEN_IDS[[2 * step % 5, (2 * step + 1) % 5]].reshape(8, 8)
        assert token_ids.equal(of_both(student.model, texts[:, :2], step))
        assert positions == slice(1, -1)
        seen.append(token_ids)
        return compared(student, teacher, token_ids, positions, objective)

    monkeypatch.setattr(on_policy, "compared", spy)
    subject = technique(own_share=1, learning_rate=0.01).apply(student(), calibration())
    assert len(seen) == 6
    assert subject.claims["written_tokens"] == 6 * 8 * 6
    assert subject.claims["trainable_parameters"] == sum(each.numel() for each in subject.model.parameters())
    untrained = of_both(student().model, seen[5][:, :2], 5)
    assert not seen[5].equal(untrained)


@pytest.mark.parametrize("parts", ["windows", "processes"])
def test_texts_are_the_same_however_a_step_is_parted(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window at a time, or in the shares of two processes: the loss of all is the mean of theirs."""
    texts: list[Tensor] = []

    def spy(*arguments: Any) -> Tensor:
        texts.append(written(*arguments))
        return texts[-1]

    monkeypatch.setattr(on_policy, "written", spy)
    model, teacher = student().model.double(), tiny_model("llama").double()
    base = Held(model, list(model.parameters()), {}, half=False)
    rows = numbered(TOKEN_IDS[:4], torch.arange(8, 12))  # of the third step
    shares = list(rows.split(1)) if parts == "windows" else [Processes(rank, 2).share(rows) for rank in range(2)]
    steps = technique(own_share=1, windows=4)
    with torch.no_grad():
        whole, *losses = (steps._loss(base, teacher, OBJECTIVE, SEED, part) for part in (rows, *shares))
    together, apart = texts[0].split(4), [text for part in texts[1:] for text in part.split(4)]
    order = range(4) if parts == "windows" else (0, 2, 1, 3)
    assert all(together[number].equal(text) for number, text in zip(order, apart, strict=True))
    assert not together[0][:, 2:].equal(together[1][:, 2:])
    assert torch.stack(losses).mean().item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("scope", ["linear", "all"])
def test_a_student_in_bfloat16_writes_in_it_and_learns_from_what_it_wrote(
    scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where embeddings, norms and head are held in float32."""
    seen: list[torch.dtype] = []

    def spy(model: nn.Module, prompts: Tensor, length: int, drawings: Any) -> Tensor:
        with torch.no_grad():
            seen.append(model(prompts).logits.dtype)
        return written(model, prompts, length, drawings)

    monkeypatch.setattr(on_policy, "written", spy)
    text = replace(calibration(), load_baseline=lambda: tiny_model("llama", "bfloat16"))
    schedule = {"training_steps": 30, "learning_rate": 3e-3}
    trained = technique(own_share=1, scope=scope, **schedule).apply(student(dtype="bfloat16"), text)
    assert seen == 30 * [torch.bfloat16]
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        before, after = (
            distilled(model, tiny_model("llama", "bfloat16"), HELD_OUT, OBJECTIVE)
            for model in (student(dtype="bfloat16").model, trained.model)
        )
    assert after < 0.95 * before
    expected = student(dtype="bfloat16").model.state_dict()
    moved = {key for key, tensor in trained.model.state_dict().items() if not tensor.equal(expected[key])}
    linears = {key for key in expected if "proj" in key}
    assert moved == (linears if scope == "linear" else expected.keys())


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_what_is_compared_is_what_both_say_at_these_positions(kind: Any) -> None:
    model, teacher = tiny_model("llama", seed=1), tiny_model("llama")
    parameter = next(p for name, p in model.named_parameters() if "q_proj" in name).requires_grad_()
    p, q = (net(TOKEN_IDS).logits[:, 11:31].log_softmax(-1) for net in (teacher, model))
    (low, high) = (q, p) if kind == "forward" else (p, q)
    expected = (high.exp() * (high - low)).sum(-1).mean()
    student = Held(model, list(model.parameters()), {}, half=False)
    found = compared(student, teacher, TOKEN_IDS, slice(11, -1), Objective(kind, 1.0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, parameter)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_it_comes_nearer_to_its_teacher_on_text_that_it_did_not_train_on() -> None:
    trained = technique(own_share=1, training_steps=30).apply(student(), calibration())
    with torch.no_grad():
        before, after = (
            distilled(subject.model, tiny_model("llama"), HELD_OUT, OBJECTIVE) for subject in (student(), trained)
        )
    assert after < 0.9 * before


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
        ({"texts": 0}, r"a window of 32 tokens cannot be parted into 0 texts"),
        ({"divergence": "sideways"}, r"no divergence 'sideways'"),
        ({"windows": 0}, r"windows=0 is not allowed, expected at least 1"),
    ],
)
@pytest.mark.parametrize("scope", ["linear", "all"])
def test_what_cannot_be_is_refused_before_any_work(fields: dict[str, Any], told: str, scope: Any) -> None:
    subject = student(dtype="bfloat16")
    with unchanged(subject.model), pytest.raises(Unsupported, match=told):
        technique(scope=scope, **fields).apply(subject, replace(calibration(), load_baseline=not_loaded))
