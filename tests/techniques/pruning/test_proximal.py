"""The proximal step by hand, and what a penalty does to weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import matrices
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning import proximal
from squeeze.techniques.pruning.proximal import ProximalL1, shrink
from squeeze.techniques.training_loop import Plan
from tests.tiny import tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)
PLAN = {"training_steps": 4, "windows": 1, "learning_rate": 1e-3}


def pruned(penalty: float, sparsity: float = 0.25, **fields: Any) -> Subject:
    return ProximalL1(sparsity, penalty, **{**PLAN, **fields}).apply(tiny_subject("llama"), CALIBRATION)


def test_the_soft_threshold_by_hand() -> None:
    weight = torch.tensor([[2.0, -2.0, 0.25], [-0.5, 0.5, 0.0]])
    shrink(weight, 0.5)
    assert weight.tolist() == [[1.5, -1.5, 0.0], [0.0, 0.0, 0.0]]


def test_each_step_shrinks_by_its_own_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(proximal, "shrink", lambda _, by: seen.append(by))
    pruned(0.25)
    plan = Plan(4, 1, 1e-3)
    layers = len(architecture.block_linears(tiny_model("llama")))
    assert seen == [0.25 * plan.rate(step) for step in range(4) for _ in range(layers)]


def test_a_penalty_takes_from_all_weights_what_its_steps_add_up_to() -> None:
    """Without a gradient, nothing else does: the teacher is the model itself, and the first loss is zero."""
    subject = pruned(10.0, sparsity=0.0, training_steps=1, learning_rate=1e-3)
    for name, layer in matrices(subject.model):
        before = architecture.weight(tiny_model("llama").get_submodule(name))
        expected = before.sign() * (before.abs() - 1e-2).clamp(min=0)
        assert torch.allclose(layer.dequantize(), expected, atol=1.1e-3), "at most AdamW's own step away"
        assert (layer.dequantize() - before).abs().mean() > 5e-3


def test_a_larger_penalty_makes_more_zeros_than_asked_and_says_so() -> None:
    gentle, strong = pruned(0.0), pruned(40.0)
    assert gentle.claims["sparsity"] == 0.25
    zeros = [int((layer.dequantize() == 0).sum()) for _, layer in matrices(strong.model)]
    share = sum(zeros) / sum(layer.dequantize().numel() for _, layer in matrices(strong.model))
    assert strong.claims["sparsity"] == round(share, 3)
    assert share > 0.4


def test_a_penalty_below_zero_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"penalty is -0\.1, expected a number of at least 0"):
        pruned(-0.1)
