"""Losses in parts are those of all logits at once, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from squeeze.models.architecture import last_hidden_state
from squeeze.techniques import losses
from squeeze.techniques.losses import divergence, next_token
from tests.causal import random_causal
from tests.tiny import CAUSAL, tiny_model

TOKEN_IDS = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "POSITIONS", 8)


def trainable(name: str, seed: int = 0) -> tuple[nn.Module, nn.Parameter]:
    model = tiny_model(name, seed=seed) if name in CAUSAL else random_causal(name)
    parameter = next(p for key, p in model.named_parameters() if "1" in key and p.ndim == 2)
    return model, parameter.requires_grad_()


def same(found: torch.Tensor, expected: torch.Tensor, parameter: nn.Parameter) -> None:
    (by_parts,) = torch.autograd.grad(3 * found, parameter)
    (at_once,) = torch.autograd.grad(3 * expected, parameter)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert at_once.abs().max() > 0
    torch.testing.assert_close(by_parts, at_once, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [*CAUSAL, "granite", "gemma2"])
def test_next_token(name: str) -> None:
    model, parameter = trainable(name)
    logits = model(TOKEN_IDS).logits[:, :-1]
    same(next_token(model, TOKEN_IDS), F.cross_entropy(logits.flatten(0, 1), TOKEN_IDS[:, 1:].flatten()), parameter)


@pytest.mark.parametrize(("name", "temperature"), [("llama", 1.0), ("llama", 2.5), ("granite", 2.5)])
def test_divergence(name: str, temperature: float) -> None:
    (model, parameter), teacher = trainable(name), tiny_model("llama", seed=1)
    p = (teacher(TOKEN_IDS).logits / temperature).softmax(-1)
    q = (model(TOKEN_IDS).logits / temperature).softmax(-1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    same(divergence(model, teacher, TOKEN_IDS, temperature), expected, parameter)


def test_nothing_of_the_teachers_forward_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    (model, _), (teacher, _) = trainable("llama"), trainable("llama", seed=1)
    kept: dict[nn.Module, bool] = {}

    def spy(model: nn.Module, **inputs: object) -> torch.Tensor:
        hidden = last_hidden_state(model, **inputs)
        kept[model] = hidden.requires_grad
        return hidden

    monkeypatch.setattr(losses, "last_hidden_state", spy)
    divergence(model, teacher, TOKEN_IDS, 1.0)
    assert kept == {model: True, teacher: False}


def test_a_model_is_at_no_distance_from_itself_and_has_nothing_to_learn() -> None:
    """Why the control of trained rows has another loss."""
    model, parameter = trainable("llama")
    distance = divergence(model, model, TOKEN_IDS, 1.0)
    assert distance.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(distance, parameter)
    assert gradient.abs().max() < 1e-6
