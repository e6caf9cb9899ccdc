"""The learned step against the paper's equations, by hand and by finite differences."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from squeeze.layers import affine
from squeeze.techniques.quantization.lsq import LearnedStep


def test_gradients_of_a_hand_computed_group() -> None:
    """3 bits, signed: Q_N = 4, Q_P = 3; steps of 1. Each weight's gradient comes with its own weight in the loss."""
    rounding = LearnedStep(torch.tensor([[-4.0, 1.0, 1.0, 1.0]]), 3, 4, symmetric=True)
    assert rounding.step.tolist() == [[1.0]]
    weight = torch.tensor([[0.4, 2.6, -9.0, 9.0]], requires_grad=True)
    values = rounding(weight)
    assert values.tolist() == [[0.0, 3.0, -4.0, 3.0]]  # eq. 1 and 2
    upstream = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    (values * upstream).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 10.0, 0.0, 0.0]]  # eq. 5
    by_hand = (0 - 0.4) * 1 + (3 - 2.6) * 10 + -4 * 100 + 3 * 1000  # eq. 3
    assert rounding.step.grad is not None
    assert float(rounding.step.grad) == pytest.approx(by_hand / sqrt(4 * 3), rel=1e-5)  # section 2.2


def test_zero_points_shift_what_is_clipped() -> None:
    """2 bits, asymmetric: zero point 1, so Q_N = 1 and Q_P = 2."""
    rounding = LearnedStep(torch.tensor([[-1.0, 2.0]]), 2, 2, symmetric=False)
    weight = torch.tensor([[-1.7, 2.9]], requires_grad=True)
    values = rounding(weight)
    assert values.tolist() == [[-1.0, 2.0]]
    values.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 0.0]]
    assert rounding.step.grad is not None
    assert float(rounding.step.grad) == pytest.approx((-1 + 2) / sqrt(2 * 3))


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_starts_where_rtn_is(symmetric: bool) -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    grid = affine.fit(weight, 3, 16, symmetric)
    started = LearnedStep(weight, 3, 16, symmetric)(weight.float())
    assert started.dtype == torch.bfloat16
    assert torch.equal(started, grid.dequantize(grid.quantize(weight), torch.bfloat16))
