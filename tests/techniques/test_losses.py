"""Losses in parts are those of all logits at once, and so are their gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import last_hidden_state
from squeeze.techniques import in_parts, losses
from squeeze.techniques.losses import Objective, distilled, distilled_from, divergence, next_token
from tests.causal import random_causal
from tests.tiny import CAUSAL, tiny_model

TOKEN_IDS = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))
MIXED = Objective("jsd", temperature=2.5, alpha=0.3, beta=0.2)
OBJECTIVES = [
    Objective(),
    Objective("forward", temperature=2.5),
    Objective("forward", temperature=2.5, alpha=0.3),
    Objective("reverse"),
    Objective("reverse", temperature=0.5, alpha=0.9),
    Objective("jsd"),
    Objective("jsd", temperature=2.5, beta=0.9),
    MIXED,
    replace(MIXED, alpha=0.0),
]


@pytest.fixture(autouse=True)
def _few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_parts, "POSITIONS", 8)


def trainable(name: str, seed: int = 0) -> tuple[nn.Module, nn.Parameter]:
    model = tiny_model(name, seed=seed) if name in CAUSAL else random_causal(name)
    parameter = next(p for key, p in model.named_parameters() if "1" in key and p.ndim == 2)
    return model, parameter.requires_grad_()


def same(found: Tensor, expected: Tensor, *parameters: nn.Parameter) -> None:
    by_parts, at_once = (torch.autograd.grad(3 * value, parameters) for value in (found, expected))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(by_parts, at_once, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def plain(model: nn.Module, teacher: nn.Module, objective: Objective) -> Tensor:
    """The objective as the papers write it, of all logits and probabilities at once."""
    own, wanted = model(TOKEN_IDS).logits, teacher(TOKEN_IDS).logits.detach()
    p, q = (wanted / objective.temperature).softmax(-1), (own / objective.temperature).softmax(-1)

    def kl(of: Tensor, against: Tensor) -> Tensor:
        return (of * (of.log() - against.log())).sum(-1).mean()

    mixture = objective.beta * p + (1 - objective.beta) * q
    distance = {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": objective.beta * kl(p, mixture) + (1 - objective.beta) * kl(q, mixture),
    }[objective.kind]
    text = F.cross_entropy(own[:, :-1].flatten(0, 1), TOKEN_IDS[:, 1:].flatten())
    return objective.alpha * objective.temperature**2 * distance + (1 - objective.alpha) * text


@pytest.mark.parametrize("name", [*CAUSAL, "granite", "gemma2"])
def test_next_token(name: str) -> None:
    model, parameter = trainable(name)
    logits = model(TOKEN_IDS).logits[:, :-1]
    same(next_token(model, TOKEN_IDS), F.cross_entropy(logits.flatten(0, 1), TOKEN_IDS[:, 1:].flatten()), parameter)


@pytest.mark.parametrize(("name", "temperature"), [("llama", 1.0), ("llama", 2.5), ("granite", 2.5)])
def test_divergence(name: str, temperature: float) -> None:
    (model, parameter), teacher = trainable(name), tiny_model("llama", seed=1)
    expected = plain(model, teacher, Objective(temperature=temperature))
    same(divergence(model, teacher, TOKEN_IDS, temperature), expected, parameter)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_is_its_papers(objective: Objective) -> None:
    (model, parameter), teacher = trainable("llama"), tiny_model("llama", seed=1)
    same(distilled(model, teacher, TOKEN_IDS, objective), plain(model, teacher, objective), parameter)


@pytest.mark.parametrize("objective", [MIXED, replace(MIXED, alpha=0.0), Objective()], ids=str)
@pytest.mark.parametrize("name", [*CAUSAL, "granite"])
def test_a_head_that_is_trained_gets_its_gradient_also_where_it_is_the_embedding(
    name: str, objective: Objective
) -> None:
    (model, inside), teacher = trainable(name), tiny_model("llama", seed=1)
    head: nn.Parameter = model.requires_grad_(True).get_output_embeddings().weight  # type: ignore[operator]
    if name in CAUSAL:
        assert (head is model.get_input_embeddings().weight) == (name in ("gpt2", "opt"))  # type: ignore[operator]
    same(distilled(model, teacher, TOKEN_IDS, objective), plain(model, teacher, objective), head, inside)


def test_the_text_alone_is_the_next_tokens_loss_bit_for_bit_and_asks_no_teacher() -> None:
    model, parameter = trainable("llama")
    text = Objective("reverse", temperature=3.0, alpha=0.0)
    found, expected = distilled(model, nn.Identity(), TOKEN_IDS, text), next_token(model, TOKEN_IDS)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(value, parameter)[0] for value in (found, expected)))


def test_at_its_ends_jsd_is_the_divergence_that_stands_there() -> None:
    model, teacher = tiny_model("llama"), tiny_model("llama", seed=1)
    for beta, kind in ((0.0, "forward"), (1.0, "reverse")):
        between, end = Objective("jsd", beta=beta), Objective(kind)  # type: ignore[arg-type]
        assert torch.equal(*(distilled(model, teacher, TOKEN_IDS, each) for each in (between, end)))


def test_states_that_are_given_are_taken() -> None:
    """Of some positions, too, as where a part of a text was written by others."""
    (model, parameter), teacher = trainable("llama"), tiny_model("llama", seed=1)
    own, wanted = (last_hidden_state(each, input_ids=TOKEN_IDS, use_cache=False) for each in (model, teacher))
    whole = distilled_from(model, teacher, own, wanted, TOKEN_IDS, MIXED)
    same(whole, plain(model, teacher, MIXED), parameter)
    some = slice(5, 9)
    found = distilled_from(model, teacher, own[:, some], wanted[:, some], TOKEN_IDS[:, some], Objective())
    logits = [each(TOKEN_IDS).logits[:, some].log_softmax(-1) for each in (teacher, model)]
    expected = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_of_the_teachers_forward_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    (model, _), (teacher, in_teacher) = trainable("llama"), trainable("llama", seed=1)
    kept: dict[nn.Module, bool] = {}

    def spy(model: nn.Module, **inputs: object) -> Tensor:
        hidden = last_hidden_state(model, **inputs)
        kept[model] = hidden.requires_grad
        return hidden

    monkeypatch.setattr(losses, "last_hidden_state", spy)
    loss = distilled(model, teacher.requires_grad_(True), TOKEN_IDS, MIXED)
    assert kept == {model: True, teacher: False}
    assert torch.autograd.grad(loss, in_teacher, allow_unused=True) == (None,)


def test_a_model_is_at_no_distance_from_itself_and_has_nothing_to_learn() -> None:
    """Why the control of trained rows has another loss."""
    model, parameter = trainable("llama")
    for objective in (Objective(), Objective("reverse"), Objective("jsd")):
        distance = distilled(model, model, TOKEN_IDS, objective)
        assert distance.item() == pytest.approx(0, abs=1e-6)
        (gradient,) = torch.autograd.grad(distance, parameter)
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "sideways"}, "no divergence 'sideways'; expected one of forward, reverse, jsd"),
        ({"temperature": 0.0}, "temperature is 0, expected a number above 0"),
        ({"alpha": 1.5}, "alpha is 1.5, expected a number from 0 to 1"),
        ({"beta": -0.1}, "beta is -0.1, expected a number from 0 to 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        Objective(**fields)  # type: ignore[arg-type]
