"""Divergences: those of the papers, at both ends of beta, and between."""

from __future__ import annotations

import math

import pytest
import torch

from squeeze.techniques.divergences import generalised

TEACHER, STUDENT = torch.tensor([[0.5, 0.5], [1.0, 1.0]]), torch.tensor([[0.25, 0.75], [1.0, 1.0]])


def between(beta: float, teacher: torch.Tensor = TEACHER, student: torch.Tensor = STUDENT) -> float:
    return float(generalised(teacher.log(), student.log(), beta))


def test_forward_is_the_teachers_and_reverse_the_students_expectation() -> None:
    """By hand: sum p log p/q and sum q log q/p of (1/2, 1/2) and (1/4, 3/4); the second row differs in nothing."""
    assert between(0.0) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert between(1.0) == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_between_them_both_are_compared_with_the_mixture(beta: float) -> None:
    p, q = TEACHER[0].double(), STUDENT[0].double()
    mixture = beta * p + (1 - beta) * q
    expected = beta * (p * (p / mixture).log()).sum() + (1 - beta) * (q * (q / mixture).log()).sum()
    assert between(beta) == pytest.approx(float(expected), rel=1e-5)


def test_beta_belongs_to_the_teacher() -> None:
    assert between(0.1) == pytest.approx(between(0.9, STUDENT, TEACHER), rel=1e-5)
    assert between(0.1) != pytest.approx(between(0.9), rel=0.01)


def test_near_its_ends_it_is_beta_times_what_stands_there() -> None:
    """Why the ends are what they are: GKD, section 3."""
    teacher, student, small = TEACHER.double(), STUDENT.double(), 1e-5
    assert between(small, teacher, student) / small == pytest.approx(between(0.0), rel=1e-3)
    assert between(1 - small, teacher, student) / small == pytest.approx(between(1.0), rel=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_it_is_least_where_nothing_differs(beta: float) -> None:
    logits = torch.randn((3, 8), generator=torch.Generator().manual_seed(0)).requires_grad_()
    same = generalised(logits.detach().log_softmax(-1), logits.log_softmax(-1), beta)
    (gradient,) = torch.autograd.grad(same, logits)
    assert same.item() == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max() < 1e-5
    other = logits.detach() + torch.linspace(0, 1, 8)
    assert generalised(other.log_softmax(-1), logits.log_softmax(-1), beta) > 0.01


def test_between_them_it_is_bounded_where_one_excludes_what_the_other_says() -> None:
    apart = torch.tensor([[1.0, 1e-30]])
    assert between(0.5, apart, apart.flip(1)) == pytest.approx(math.log(2), rel=1e-4)
    assert between(0.0, apart, apart.flip(1)) > 60
