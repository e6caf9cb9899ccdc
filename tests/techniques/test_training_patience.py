"""Held-out text is looked at and changes nothing, unless patience says so: then training ends where it was best."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.techniques import training_loop
from squeeze.techniques.contract import Workplace
from squeeze.techniques.training_loop import LOOKS, Plan, train

PATIENT = Plan(steps=40, windows=2, learning_rate=0.05, at_once=1, schedule="constant", patience=2)
NONE = torch.empty((0, 0), dtype=torch.int64)


class Killed(BaseException):
    """The process ends here."""


def overfitted(
    plan: Plan, workplace: Workplace, kill_at: int | None = None, held_out: torch.Tensor | None = None
) -> tuple[float, int]:
    """A parameter that training draws from 0 to 1, while held-out rows want it at a half; how many steps it took."""
    parameter, calls = nn.Parameter(torch.zeros(1)), count()

    def loss(rows: torch.Tensor) -> torch.Tensor:
        if next(calls) == kill_at:
            raise Killed
        return ((parameter - rows.float().mean() / 2) ** 2).sum()

    looked_at = torch.ones((3, 1), dtype=torch.int64) if held_out is None else held_out
    rows = torch.full((4, 1), 2)
    steps = train([parameter], loss, rows, plan, title="it", workplace=workplace, held_out=looked_at)
    return parameter.item(), steps


def test_it_stops_when_held_out_text_gains_nothing_more_and_goes_back_to_the_best() -> None:
    workplace = Workplace()
    parameter, steps = overfitted(PATIENT, workplace)
    looks = {point.step: point.held_out for point in workplace.curve if point.held_out is not None}
    best = min(looks, key=lambda step: looks[step])
    assert list(looks) == list(range(0, steps + 1, 4)), "before the first step, and after every tenth of the plan's"
    assert best > 0
    assert best + 2 * 4 == steps < PATIENT.steps
    assert (parameter - 0.5) ** 2 == pytest.approx(looks[best])
    assert looks[0] == pytest.approx(0.25)
    assert [point.step for point in workplace.curve] == [*range(steps + 1)]
    assert [point.loss for point in workplace.curve[:2]] == [None, 1.0]


def test_a_training_that_only_harms_is_undone() -> None:
    workplace = Workplace()
    parameter, steps = overfitted(PATIENT, workplace, held_out=torch.zeros((3, 1), dtype=torch.int64))
    assert (parameter, steps) == (0.0, 8)


def test_without_patience_it_looks_and_goes_on() -> None:
    workplace, plain = Workplace(), Workplace()
    plan = Plan(steps=40, windows=2, learning_rate=0.05, at_once=1, schedule="constant")
    found = overfitted(plan, workplace)
    assert found == overfitted(plan, plain, held_out=NONE), "who looks changes nothing"
    assert found[1] == 40
    assert workplace.curve[-1].held_out is not None
    assert len(plain.curve) == 40
    assert all(point.held_out is None for point in plain.curve)


@pytest.mark.parametrize("kill_at", [1, 20, 50])
def test_a_patient_training_that_was_killed_ends_as_it_would_have(
    kill_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    undisturbed, workplace = Workplace(), Workplace(tmp_path)
    whole = overfitted(PATIENT, undisturbed)
    with pytest.raises(Killed):
        overfitted(PATIENT, Workplace(tmp_path), kill_at=kill_at)
    assert overfitted(PATIENT, workplace) == whole
    assert workplace.curve == undisturbed.curve


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schedule": "cosin"}, "schedule='cosin' is not known; choose from: linear, cosine, constant"),
        ({"at_once": 0}, "at_once=0 is not allowed, expected at least 1"),
        ({"patience": 0}, "patience=0 is not allowed, expected at least 1"),
        ({"steps": 0}, "steps=0 is not allowed, expected at least 1"),
        ({"windows": 0}, "windows=0 is not allowed, expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0 is not allowed, expected a number above 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        Plan(**{"steps": 4, "windows": 1, "learning_rate": 0.1, **fields})


def test_patience_takes_text_to_look_at() -> None:
    with pytest.raises(SqueezeError, match=r"it: patience=2 looks at held-out windows and there are 0, expected"):
        overfitted(PATIENT, Workplace(), held_out=NONE)


def test_a_loss_of_held_out_text_that_is_not_finite_ends_it() -> None:
    parameter = nn.Parameter(torch.zeros(1))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return parameter.sum() / rows.sum()

    with pytest.raises(SqueezeError, match="it: the loss of the held-out windows is nan in step 0 of 40"):
        train(
            [parameter], loss, torch.ones((2, 1), dtype=torch.int64), PATIENT, title="it", workplace=Workplace(),
            held_out=torch.zeros((1, 1), dtype=torch.int64),
        )  # fmt: skip


class Spent:
    """Counts a joule for each loss that is computed."""

    def __init__(self) -> None:
        self.joules: float | None = 0.0
        self.losses, self._before = 0, 0

    def start(self) -> None:
        self._before = self.losses

    def stop(self) -> None:
        assert self.joules is not None
        self.joules += self.losses - self._before


@pytest.mark.parametrize(("patience", "looks"), [(None, [0, 20]), (100, [*range(0, 21, 2)])])
def test_looks_at_held_out_text_are_no_part_of_what_training_took(
    patience: int | None, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second passes with each loss that is computed: one a step, and three a look at six rows."""
    spent, parameter = Spent(), nn.Parameter(torch.zeros(1))
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda: float(spent.losses)))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        spent.losses += 1
        return ((parameter - rows.float().mean()) ** 2).sum()

    rows, workplace = torch.ones((6, 1), dtype=torch.int64), Workplace(meter=spent)
    train([parameter], loss, rows, Plan(20, 2, 0.01, patience=patience), title="it", workplace=workplace, held_out=rows)
    assert [point.step for point in workplace.curve if point.held_out is not None] == looks
    assert spent.losses == 20 + 3 * len(looks)
    assert (workplace.seconds, workplace.joules) == (20, 20)


@pytest.mark.parametrize("steps", [1, 5, 10, 14, 25, 64])
def test_patience_looks_after_each_tenth_of_the_steps_and_no_oftener(steps: int) -> None:
    patient, plain = Plan(steps, 1, 0.1, patience=1), Plan(steps, 1, 0.1)
    looks = [step for step in range(steps + 1) if patient.looks_after(step)]
    assert len(looks) <= LOOKS + 1
    assert (looks[0], looks[-1]) == (0, steps)
    assert [step for step in range(steps + 1) if plain.looks_after(step)] == [0, steps]
