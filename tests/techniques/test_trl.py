"""GKD's divergence against its own formula, in probabilities, and against TRL's code, where it is installed.

`nox -s agreement` installs it, and says by a variable that it has: there, a TRL that is missing is an error.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from squeeze.techniques.losses import Objective

THEIRS = "trl.experimental.gkd"
MUST_BE_THERE = "SQUEEZE_TEST_AGREEMENT"  # set by `nox -s agreement`
generator = torch.Generator().manual_seed(0)
TEACHER, STUDENT = (3 * torch.randn((2, 5, 40), generator=generator) for _ in range(2))
CASES = [
    (Objective("forward"), 0.0),
    (Objective("reverse"), 1.0),
    (Objective("jsd", beta=0.5), 0.5),
    (Objective("jsd", beta=0.1), 0.1),
    (Objective("jsd", beta=0.9, temperature=2.5), 0.9),
    (Objective("forward", temperature=0.7), 0.0),
]


def ours(objective: Objective, student: Tensor) -> Tensor:
    """Without T^2, which GKD's loss does not have; mean over the ten positions."""
    found = objective.divergence(TEACHER.flatten(0, 1), student.flatten(0, 1))
    return found / objective.temperature**2 / 10


def value_and_gradient(loss: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, student)[0]


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert expected[1].abs().max() > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("objective", "beta"), CASES, ids=str)
def test_it_is_the_papers_formula(objective: Objective, beta: float) -> None:
    """Eq. 1, written with probabilities, in float64; at the ends of beta, KL itself."""
    student = STUDENT.clone().requires_grad_()
    found = value_and_gradient(ours(objective, student), student)
    p = (TEACHER.double() / objective.temperature).softmax(-1)
    q = (student.double() / objective.temperature).softmax(-1)
    m = beta * p + (1 - beta) * q
    weights = {0.0: (1, 0), 1.0: (0, 1)}.get(beta, (beta, 1 - beta))
    against = {0.0: (q, p), 1.0: (q, p)}.get(beta, (m, m))
    terms = (p * (p / against[0]).log(), q * (q / against[1]).log())
    expected = sum(weight * term.sum(-1).mean() for weight, term in zip(weights, terms, strict=True))
    same(found, value_and_gradient(expected, student))  # type: ignore[arg-type]


def gkd() -> Any:
    """TRL's module."""
    if os.environ.get(MUST_BE_THERE):
        return import_module(THEIRS)
    return pytest.importorskip(THEIRS, exc_type=ImportError)


@pytest.mark.parametrize(("objective", "beta"), CASES, ids=str)
def test_it_is_what_trl_computes(objective: Objective, beta: float) -> None:
    trainer = gkd().GKDTrainer
    student = STUDENT.clone().requires_grad_()
    theirs = trainer.generalized_jsd_loss(
        student, TEACHER, labels=torch.zeros((2, 5)), beta=beta, temperature=objective.temperature
    )
    same(value_and_gradient(ours(objective, student), student), value_and_gradient(theirs, student))


def test_where_it_was_installed_a_missing_trl_is_an_error_and_elsewhere_a_reason_to_skip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, THEIRS, None)  # as if it were not there
    monkeypatch.setenv(MUST_BE_THERE, "1")
    with pytest.raises(ImportError):
        gkd()
    monkeypatch.delenv(MUST_BE_THERE)
    with pytest.raises(pytest.skip.Exception):
        gkd()
