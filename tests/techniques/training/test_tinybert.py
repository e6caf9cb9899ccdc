"""Matching: by hand, of layers mapped uniformly, with projections that learn, and of what every architecture shows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import blocks
from squeeze.models.tiny import SHAPES, VOCABULARY
from squeeze.techniques.training.tinybert import Matching, attention_loss, hidden_loss, read, uniform
from tests.tiny import CAUSAL, tiny_model

TOKEN_IDS = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))


def llama(**sizes: int) -> nn.Module:
    """A model of other sizes than the tiny one's."""
    config = CONFIG_MAPPING["llama"](**{**SHAPES["llama"], "vocab_size": VOCABULARY, **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def states(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)[None]


def test_layers_are_mapped_uniformly_ends_to_ends() -> None:
    assert uniform(4, 7) == [0, 2, 4, 6]
    assert uniform(16, 31) == list(range(0, 31, 2))
    assert uniform(3, 4) == [0, 2, 3]
    assert uniform(3, 3) == [0, 1, 2]


def test_hidden_states_are_compared_by_direction() -> None:
    """(1, 0) and (0, 1) become sqrt(2) times as long, so that they lie (2 + 2) / 2 apart; (3, 0) is (1, 0)."""
    eye, right, up = torch.eye(2), states([1, 0]), states([0, 1])
    assert hidden_loss([right, right], [3 * right, right], [eye, eye]).item() == pytest.approx(0, abs=1e-6)
    assert hidden_loss([right, right], [up, right], [eye, eye]).item() == pytest.approx(1)
    assert hidden_loss([right, right], [right, up, right], [eye, eye]).item() == pytest.approx(0, abs=1e-6)


def test_a_projection_leads_to_the_teachers_width_and_learns_to() -> None:
    own, wanted = states([1, 0], [0, 1]), states([0, 1, 1], [1, 0, 0])
    right = torch.tensor([[0, 1, 1], [math.sqrt(2), 0, 0]]) * math.sqrt(3) / 2
    assert hidden_loss([own, own], [wanted, wanted], [right, right]).item() == pytest.approx(0, abs=1e-6)
    learned = nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([learned], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        hidden_loss([own, own], [wanted, wanted], [learned, learned]).backward()
        optimizer.step()
    torch.testing.assert_close(learned.detach(), right, rtol=1e-3, atol=1e-3)


def maps(*scores: list[float]) -> Tensor:
    """(1, 1, n, n) attention probabilities of scores, each query seeing itself and those before it."""
    square = torch.tensor(scores, dtype=torch.float32)
    square = square.masked_fill(torch.ones_like(square).triu(1) > 0, -torch.inf)
    return square.softmax(-1)[None, None]


def test_attention_is_compared_by_scores_up_to_a_constant_of_the_query() -> None:
    """The second query's scores, (1, 0) and (0, 0), lie (1/2, -1/2) apart from their means: 2/4 over three pairs."""
    flat = maps([0, 9], [0, 0])
    assert attention_loss([maps([7, 9], [5, 5])], [flat]).item() == pytest.approx(0, abs=1e-6)
    assert attention_loss([maps([0, 9], [1, 0])], [flat]).item() == pytest.approx(0.5 / 3, rel=1e-4)


def test_blocks_attention_is_mapped_to_that_of_the_last_of_those_they_stand_for() -> None:
    one, other = maps([0, 0], [0, 0]), maps([0, 0], [4, 0])
    assert attention_loss([one, one], [other, one, other, one]).item() == pytest.approx(0, abs=1e-6)
    assert attention_loss([one, one], [one, other, one, other]).item() > 1


def test_what_is_not_seen_has_no_gradient_and_what_is_has_one() -> None:
    scores = torch.zeros((3, 3), requires_grad=True)
    seen = scores.masked_fill(torch.ones(3, 3).triu(1) > 0, -torch.inf).softmax(-1)[None, None]
    loss = attention_loss([seen], [maps([0, 0, 0], [2, 0, 0], [0, 3, 0])])
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.isfinite().all()
    assert gradient.triu(1).abs().max() == 0
    assert (gradient[1:].tril(1)[:, :2].abs() > 0.01).all()


@pytest.mark.parametrize("match", ["hidden", "attention"])
@pytest.mark.parametrize("name", CAUSAL)
def test_every_architecture_shows_what_is_matched(name: str, match: str) -> None:
    student, teacher = tiny_model(name), tiny_model(name, seed=1)
    parameter = next(p for key, p in student.named_parameters() if "1" in key and p.ndim == 2).requires_grad_()
    matching = Matching.between(student, teacher, match, TOKEN_IDS, seed=0)  # type: ignore[arg-type]
    with matching.shown(student, teacher):
        outputs, wanted = (read(model, TOKEN_IDS, matching.match) for model in (student, teacher))
        assert matching.loss(outputs, outputs).item() == pytest.approx(0, abs=1e-5)
        loss = matching.loss(outputs, wanted)
    assert loss.item() > 0.01
    assert torch.autograd.grad(loss, parameter)[0].abs().max() > 0
    assert len(matching.projections) == (len(blocks(student)) + 1 if match == "hidden" else 0)
    assert all(torch.equal(each, torch.eye(64)) for each in matching.projections)
    assert student.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_a_student_of_another_width_gets_projections_of_its_seed() -> None:
    student, teacher = llama(hidden_size=32), tiny_model("llama")
    found = [Matching.between(student, teacher, "hidden", TOKEN_IDS, seed).projections for seed in (0, 0, 1)]
    assert {tuple(each.shape) for each in found[0]} == {(32, 64)}
    assert all(torch.equal(*pair) for pair in zip(*found[:2], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(*found[1:], strict=True))
    matching = Matching("hidden", found[0])
    own, wanted = (read(model, TOKEN_IDS, "hidden") for model in (student, teacher))
    assert 0.5 < matching.loss(own, wanted).item() < 4, "of the size of the states themselves, from the beginning on"


def test_heads_that_have_no_counterparts_are_refused() -> None:
    student = llama(num_attention_heads=2)
    with pytest.raises(Unsupported, match="the student has 2 heads a block, its teacher 4; use match: hidden"):
        Matching.between(student, tiny_model("llama"), "attention", TOKEN_IDS, 0)
    with pytest.raises(Unsupported, match="no matching of 'both'; expected one of none, hidden, attention"):
        Matching.between(student, student, "both", TOKEN_IDS, 0)  # type: ignore[arg-type]
