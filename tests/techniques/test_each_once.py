"""A layer of several blocks is told of once, with what it reads in all of them."""

from __future__ import annotations

import pytest
import torch

from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import InputStatistics
from squeeze.techniques.each_once import united
from tests.tiny import tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


def statistics(*rows: list[float]) -> InputStatistics:
    x = torch.tensor(rows)
    low, high = x.amin(dim=0).clamp(max=0), x.amax(dim=0).clamp(min=0)
    return InputStatistics(x.T @ x / len(x), x.abs().mean(dim=0), low, high, len(x))


def test_what_is_united_is_what_all_inputs_together_have() -> None:
    first, second = [[1.0, -2.0], [3.0, 4.0], [0.5, 0.0]], [[-5.0, 6.0]]
    together, parts = statistics(*first, *second), united([statistics(*first), statistics(*second)])
    for field in ("hessian", "mean_abs", "low", "high"):
        assert torch.allclose(getattr(parts, field), getattr(together, field))
    assert parts.tokens == 4
    assert united([together]) is together


@pytest.mark.parametrize("sequential", [True, False])
def test_a_shared_layer_comes_in_its_last_place_with_the_inputs_of_both(sequential: bool) -> None:
    own, subject = tiny_subject("llama"), tiny_subject("llama")
    first, second = architecture.blocks(subject.model)
    for kind in ("q_proj", "k_proj"):
        setattr(second.self_attn, kind, getattr(first.self_attn, kind))
    architecture.blocks(own.model)[1].load_state_dict(second.state_dict())  # the same function, layers of its own
    blocks = [inputs for _, _, inputs in CalibrationText(TEXT).input_statistics(own.model)]
    found = [inputs for _, _, inputs in CalibrationText(TEXT).input_statistics(subject.model, sequential=sequential)]
    assert found[0].keys() == blocks[0].keys() - {"self_attn.q_proj", "self_attn.k_proj"}
    assert found[1].keys() == blocks[1].keys()
    q, k, v = (found[1][f"self_attn.{kind}_proj"] for kind in "qkv")
    assert q is k is not v
    assert (q.tokens, v.tokens) == (2 * TEXT.numel(), TEXT.numel())
    before = [each["self_attn.q_proj"].hessian for each in blocks]
    assert torch.allclose(q.hessian, (before[0] + before[1]) / 2, rtol=1e-4, atol=1e-5)
    assert torch.allclose(v.hessian, before[1], rtol=1e-4, atol=1e-5)
