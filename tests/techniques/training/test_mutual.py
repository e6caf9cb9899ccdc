"""Mutual learning: both learn, each from the other, and what one is told moves the other by nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.layers.master_weights import MasterLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.models.surgery import keep_blocks
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training import mutual
from squeeze.techniques.training.mutual import Mutual, joint
from tests.tiny import tiny_model, tiny_subject
from tests.unchanged import not_loaded, unchanged

TOKEN_IDS = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


def student(dtype: str = "float32") -> Subject:
    subject = tiny_subject("llama", dtype)
    keep_blocks(subject.model, [0])
    return subject


def calibration(peer: nn.Module, folder: Path | None = None) -> CalibrationText:
    return CalibrationText(TOKEN_IDS, workplace=Workplace(folder), load_baseline=lambda: peer)


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKEN_IDS[:, 1:].flatten())


def kl(given: Tensor, logits: Tensor) -> Tensor:
    """KL(given || logits), mean over positions."""
    p, q = given.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def test_each_models_gradient_is_that_of_its_own_loss_alone() -> None:
    """Of equations 5 to 8, by all logits at once, with the other model's as constants."""
    models = student().model, tiny_model("llama")
    watched = [next(p for name, p in model.named_parameters() if "q_proj" in name) for model in models]
    for parameter in watched:
        parameter.requires_grad_()
    one, two = (model(TOKEN_IDS).logits for model in models)
    losses = cross_entropy(one) + kl(two.detach(), one), cross_entropy(two) + kl(one.detach(), two)
    found = joint(*models, TOKEN_IDS)
    assert found.item() == pytest.approx(sum(loss.item() for loss in losses), rel=1e-5)
    for parameter, loss in zip(watched, losses, strict=True):
        (by_joint,) = torch.autograd.grad(found, parameter, retain_graph=True)
        (alone,) = torch.autograd.grad(loss, parameter)
        assert alone.abs().max() > 0
        torch.testing.assert_close(by_joint, alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scope", ["linear", "all"])
def test_both_learn_the_text_and_each_other_and_the_student_is_kept(scope: Any) -> None:
    peer, untrained = tiny_model("llama"), student()
    trained = Mutual(training_steps=20, windows=2, learning_rate=1e-3, scope=scope).apply(student(), calibration(peer))
    with torch.no_grad():
        one, two = untrained.model(TOKEN_IDS).logits, tiny_model("llama")(TOKEN_IDS).logits
        one_later, two_later = trained.model(TOKEN_IDS).logits, peer(TOKEN_IDS).logits
    assert cross_entropy(one_later) < 0.95 * cross_entropy(one)
    assert cross_entropy(two_later) < 0.95 * cross_entropy(two)
    assert kl(two_later, one_later) < 0.9 * kl(two, one)
    assert trained.model.state_dict().keys() == untrained.model.state_dict().keys()
    assert not any(isinstance(module, MasterLinear) for module in trained.model.modules())
    of_student, of_peer = (
        sum(p.numel() for name, p in model.named_parameters() if scope == "all" or "proj" in name)
        for model in (trained.model, peer)
    )
    assert trained.claims == {"training_tokens": 20 * 2 * 32, "trainable_parameters": of_student + of_peer}


def test_what_was_killed_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer, too: else the student would be told other things."""
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    technique = Mutual(training_steps=6, windows=1, learning_rate=1e-3)
    whole = technique.apply(student(), calibration(peer := tiny_model("llama")))
    calls = 0

    def dies(*arguments: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return joint(*arguments)

    monkeypatch.setattr(mutual, "joint", dies)
    with pytest.raises(KeyboardInterrupt):
        technique.apply(student(), calibration(tiny_model("llama"), tmp_path))
    continued = technique.apply(student(), calibration(again := tiny_model("llama"), tmp_path))
    assert calls == 7
    for one, other in ((continued.model, whole.model), (again, peer)):
        expected = other.state_dict()
        assert all(tensor.equal(expected[name]) for name, tensor in one.state_dict().items())


def test_a_model_cannot_learn_from_itself() -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match="expected a smaller one"):
        Mutual(2, 1, 1e-3).apply(subject, calibration(tiny_model("llama")))
    assert not any(isinstance(module, MasterLinear) for module in subject.model.modules())


def test_in_bfloat16_both_heads_learn_though_each_is_also_asked_without_gradient() -> None:
    peer, trained = tiny_model("llama", "bfloat16"), student("bfloat16")
    Mutual(training_steps=1, windows=2, learning_rate=0.05).apply(trained, calibration(peer))
    for model, before in ((trained.model, student("bfloat16").model), (peer, tiny_model("llama", "bfloat16"))):
        expected = before.state_dict()
        unchanged = [name for name, tensor in model.state_dict().items() if tensor.equal(expected[name])]
        assert unchanged == []
        assert architecture.dtype(model) is torch.bfloat16


def test_what_is_packed_is_refused() -> None:
    subject = RoundToNearest(4, 32, symmetric=True).apply(student(), CalibrationText.empty())
    with pytest.raises(Unsupported, match=r"found 7 that are packed \(QuantizedLinear\); follow with recover"):
        Mutual(2, 1, 1e-3).apply(subject, calibration(tiny_model("llama")))


@pytest.mark.parametrize("scope", ["linear", "all"])
@pytest.mark.parametrize("schedule", [(0, 1, 1e-3), (2, 0, 1e-3), (2, 1, 0.0)])
def test_a_schedule_that_is_none_is_refused_before_any_work(schedule: tuple[int, int, float], scope: Any) -> None:
    subject = student()
    with unchanged(subject.model), pytest.raises(Unsupported, match="=0 is not allowed, expected"):
        Mutual(*schedule, scope).apply(subject, CalibrationText(TOKEN_IDS, load_baseline=not_loaded))
