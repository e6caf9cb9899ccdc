"""Training: it descends, it goes on where it was killed as if it had not been, and it says when it cannot."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.techniques import training_loop
from squeeze.techniques.contract import Workplace
from squeeze.techniques.training_loop import Plan, train

TOKEN_IDS = torch.arange(15).reshape(5, 3)
PLAN = Plan(steps=12, windows=2, learning_rate=0.1)


class Killed(BaseException):
    """The process ends here."""


def trained(
    workplace: Workplace, kill_at: int | None = None, plan: Plan = PLAN
) -> tuple[nn.Parameter, list[list[int]]]:
    """A parameter that each step draws towards the tokens of its windows; the windows that each step saw."""
    parameter, seen = nn.Parameter(torch.zeros(3)), []

    def loss(token_ids: torch.Tensor) -> torch.Tensor:
        if len(seen) == kill_at:
            raise Killed
        seen.append(token_ids[:, 0].tolist())
        return ((parameter - token_ids.float().mean(0) / 15) ** 2).sum()

    train([parameter], loss, TOKEN_IDS, plan, title="made up", workplace=workplace)
    return parameter, seen


def test_it_descends_over_the_windows_in_their_order() -> None:
    parameter, seen = trained(Workplace())
    assert seen[:4] == [[0, 3], [6, 9], [12, 0], [3, 6]]
    assert len(seen) == PLAN.steps
    wanted = TOKEN_IDS.float().mean(0) / 15
    assert ((parameter - wanted).abs() < 0.2 * wanted).all()
    assert not parameter.requires_grad


def test_what_was_killed_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    whole, seen = trained(Workplace())
    with pytest.raises(Killed):
        trained(Workplace(tmp_path / "work"), kill_at=7)
    workplace = Workplace(tmp_path / "work")
    continued, seen_later = trained(workplace)
    assert seen_later == seen[7:]
    assert torch.equal(continued, whole)
    assert workplace.reused_seconds > 0
    workplace.clear()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_spaced_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(Workplace(tmp_path))
    assert list(tmp_path.iterdir()) == []
    saved, clock = [], count(step=25)  # seconds, each time that somebody looks
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(training_loop, "_save", lambda *arguments: saved.append(arguments[-1]["steps"]))
    trained(Workplace(tmp_path))
    assert saved == [3, 6, 9, 12]


def test_the_seconds_of_all_that_were_killed_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    clock = count()  # a second passes each time that somebody looks
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    workplaces = [Workplace(tmp_path) for _ in range(3)]
    for workplace in workplaces:
        with pytest.raises(Killed):
            trained(workplace, kill_at=3)
    none, one, two = (workplace.reused_seconds for workplace in workplaces)
    assert (none, two) == (0, 2 * one)
    assert one > 3


@torch.no_grad()
def test_it_is_adam_with_the_joint_gradient_shortened() -> None:
    """Kingma & Ba 2014, algorithm 1, without any decay, written out; the caller keeps no gradients."""
    first, second, plan = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([3.0])), Plan(6, 1, 0.1)

    def loss(token_ids: torch.Tensor) -> torch.Tensor:
        return (first**2).sum() + 0.1 * (second - token_ids[0, 0]) ** 2

    values = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    mean, square = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(plan.steps):
        token = float(TOKEN_IDS[step % len(TOKEN_IDS), 0])
        gradient = torch.cat([2 * values[:2], 0.2 * (values[2:] - token)])
        gradient /= max(1.0, float(gradient.norm()))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        values -= plan.rate(step) * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    train([first, second], loss, TOKEN_IDS, plan, title="made up", workplace=Workplace())
    assert torch.cat([first, second]).tolist() == pytest.approx(values.tolist(), rel=1e-4)


def test_the_rate_rises_and_falls() -> None:
    plan = Plan(steps=20, windows=1, learning_rate=1.0)
    rates = [plan.rate(step) for step in range(20)]
    assert rates[:3] == pytest.approx([0.5, 0.95, 0.9])
    assert rates[-1] == pytest.approx(0.05)
    assert Plan(1, 1, 0.5).rate(0) == 0.5


def test_a_loss_that_is_not_finite_ends_it_with_advice() -> None:
    parameter, plan = nn.Parameter(torch.zeros(1)), Plan(3, 1, 0.1)
    with pytest.raises(SqueezeError, match=r"the loss is nan in step 1 of 3.*lower learning_rate, now 0.1"):
        train([parameter], lambda _: (parameter / 0).sum(), TOKEN_IDS, plan, title="it", workplace=Workplace())


def test_without_windows_it_says_what_to_name() -> None:
    empty = torch.empty((0, 0), dtype=torch.int64)
    with pytest.raises(SqueezeError, match="name a calibration"):
        train([nn.Parameter(torch.zeros(1))], torch.sum, empty, PLAN, title="it", workplace=Workplace())


def test_a_person_hears_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    trained(Workplace())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("made up: step 1 of 12, loss ")
    assert lines[-1].startswith("made up: step 12 of 12, loss ")
    assert len(lines) == 2
