"""In parts: the same mean and the same gradients as at once, and never more positions than were asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squeeze.techniques import in_parts

generator = torch.Generator().manual_seed(0)
HIDDEN = torch.randn((21, 6), generator=generator)
OTHER = torch.randn((21, 9), generator=generator)
HEAD = torch.randn((9, 6), generator=generator)


@pytest.fixture(autouse=True)
def _few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_parts, "POSITIONS", 8)


def loss_of(head: Tensor) -> Any:
    return lambda hidden, other: ((hidden @ head.T).softmax(-1) * other).square().sum()


def test_mean_and_gradients_are_those_of_all_positions_at_once() -> None:
    hidden, head = HIDDEN.clone().requires_grad_(), nn.Parameter(HEAD.clone())
    found = in_parts.mean(loss_of(head), hidden, [OTHER], [head])
    expected = loss_of(head)(hidden, OTHER) / len(HIDDEN)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    by_parts, at_once = (torch.autograd.grad(3 * value, (hidden, head)) for value in (found, expected))
    for one, other in zip(by_parts, at_once, strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_parameter_that_was_not_named_gets_nothing() -> None:
    hidden, head = HIDDEN.clone().requires_grad_(), nn.Parameter(HEAD.clone())
    found = in_parts.mean(loss_of(head), hidden, [OTHER])
    of_hidden, of_head = torch.autograd.grad(found, (hidden, head), allow_unused=True)
    assert of_hidden.abs().max() > 0
    assert of_head is None


def test_a_parameter_that_the_loss_does_not_read_has_no_gradient() -> None:
    hidden, idle = HIDDEN.clone().requires_grad_(), nn.Parameter(torch.ones(2))
    (gradient,) = torch.autograd.grad(in_parts.mean(loss_of(HEAD), hidden, [OTHER], [idle]), idle)
    assert gradient.tolist() == [0, 0]


@pytest.mark.parametrize("with_gradient", [True, False])
def test_no_more_positions_lie_in_memory_than_were_asked_for(with_gradient: bool) -> None:
    seen = []

    def loss(hidden: Tensor, other: Tensor) -> Tensor:
        assert torch.equal(other[:, :1], OTHER[sum(seen) : sum(seen) + len(other), :1])
        seen.append(len(hidden))
        return hidden.sum()

    with torch.set_grad_enabled(with_gradient):
        in_parts.mean(loss, HIDDEN.clone().requires_grad_(), [OTHER])
    assert seen == [8, 8, 5]


def test_where_no_gradient_is_wanted_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    head = nn.Parameter(HEAD.clone())
    expected = in_parts.mean(loss_of(head), HIDDEN, [OTHER], [head]).item()
    monkeypatch.setattr(torch.autograd, "grad", None)
    with torch.no_grad():
        assert in_parts.mean(loss_of(head), HIDDEN, [OTHER], [head]).item() == pytest.approx(expected, rel=1e-6)


def test_under_autocast_a_float32_head_is_trained_too() -> None:
    """Its cast to bfloat16 is made once, for all parts."""
    hidden, head = HIDDEN.clone().requires_grad_(), nn.Parameter(HEAD.clone())
    with torch.autocast("cpu", torch.bfloat16):
        found = in_parts.mean(loss_of(head), hidden, [OTHER], [head])
    (by_parts,) = torch.autograd.grad(found, head)
    (at_once,) = torch.autograd.grad(loss_of(head)(hidden, OTHER) / len(HIDDEN), head)
    assert by_parts.dtype == torch.float32
    torch.testing.assert_close(by_parts, at_once, rtol=0.1, atol=0.02 * float(at_once.abs().max()))
