"""The teacher's likeliest tokens: kept once, read by all, and the rest of the probability is one class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from squeeze.core import cache
from squeeze.core.errors import Unsupported
from squeeze.models.architecture import last_hidden_state
from squeeze.models.tiny import VOCABULARY
from squeeze.techniques.losses import Objective, said, towards
from squeeze.techniques.training import top_k
from squeeze.techniques.training.top_k import TopK, classes
from tests.tiny import tiny_model

TOKEN_IDS = torch.randint(256, (4, 12), generator=torch.Generator().manual_seed(0))
OBJECTIVES = [
    Objective(),
    Objective("reverse", temperature=2.0),
    Objective("jsd", alpha=0.5, beta=0.2),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(top_k, "AT_ONCE", 5)
    with cache.using(tmp_path):
        yield tmp_path / "calibration"


def test_others_are_one_class_with_all_their_probability() -> None:
    """Of 8, 4, 2, 1 and 1 in 16, the first and the fourth are named."""
    logits = torch.tensor([[8.0, 4, 2, 1, 1]]).log() + 3
    found = classes(logits, torch.tensor([[0, 3]])).exp()
    torch.testing.assert_close(found, torch.tensor([[8.0, 1, 7]]) / 16)


@torch.no_grad()
def test_the_likeliest_of_every_position_are_kept_and_the_share_that_they_are_of_all() -> None:
    teacher = tiny_model("llama")
    kept = TopK.of(teacher, TOKEN_IDS, 5, 1.0)
    probabilities = teacher(TOKEN_IDS).logits.softmax(-1)
    largest = probabilities.topk(5)
    torch.testing.assert_close(kept.log_probabilities[..., :5].exp(), largest.values)
    torch.testing.assert_close(probabilities.gather(-1, kept.tokens.long()), largest.values)
    torch.testing.assert_close(kept.log_probabilities.exp().sum(-1), torch.ones(4, 12))
    assert kept.mass == pytest.approx(float(largest.values.sum(-1).mean()), rel=1e-5)
    assert (kept.tokens.dtype, kept.log_probabilities.dtype) == (torch.int32, torch.float32)


@torch.no_grad()
def test_a_temperature_softens_tokens_before_the_others_are_one_class() -> None:
    """The same tokens are the likeliest; the share that they are is told of what the teacher says, at 1."""
    teacher = tiny_model("llama")
    unsoftened, softened = (TopK.of(teacher, TOKEN_IDS, 5, temperature) for temperature in (1.0, 2.0))
    assert torch.equal(softened.tokens, unsoftened.tokens)
    largest = (teacher(TOKEN_IDS).logits / 2).softmax(-1).topk(5).values
    torch.testing.assert_close(softened.log_probabilities[..., :5].exp(), largest)
    torch.testing.assert_close(softened.log_probabilities[..., 5].exp(), 1 - largest.sum(-1))
    assert softened.mass == unsoftened.mass


def plain(model: torch.nn.Module, teacher: torch.nn.Module, windows: Tensor, k: int, temperature: float) -> Tensor:
    """T^2 KL(p_T || q_T) of Hinton's distributions, softmax(logits / T), of k tokens and the sum of the others."""
    wanted, own = ((each(windows).logits / temperature).softmax(-1) for each in (teacher, model))
    tokens = wanted.topk(k).indices
    named = [each.gather(-1, tokens) for each in (wanted, own)]
    p, q = (torch.cat([each, 1 - each.sum(-1, keepdim=True)], -1) for each in named)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_a_student_is_compared_in_these_classes(temperature: float) -> None:
    student, teacher = tiny_model("llama"), tiny_model("llama", seed=1)
    parameter = student.model.layers[1].mlp.up_proj.weight.requires_grad_()  # type: ignore[union-attr,index,operator]
    numbers = torch.tensor([3, 1])
    windows = TOKEN_IDS[numbers]
    hidden = last_hidden_state(student, input_ids=windows, use_cache=False)
    target = TopK.of(teacher, TOKEN_IDS, 7, temperature).said(numbers)
    found = towards(student, hidden, target, windows, Objective(temperature=temperature))
    expected = plain(student, teacher, windows, 7, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    by_parts, at_once = (torch.autograd.grad(value, parameter)[0] for value in (found, expected))
    torch.testing.assert_close(by_parts, at_once, rtol=1e-2, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_more_classes_the_nearer_to_the_divergence_of_all_tokens(objective: Objective) -> None:
    """Of all but one token, it is that; of fewer it is less: what is not told apart cannot differ."""
    student, teacher = tiny_model("llama"), tiny_model("llama", seed=1)
    own, wanted = (last_hidden_state(each, input_ids=TOKEN_IDS, use_cache=False) for each in (student, teacher))
    numbers = torch.arange(len(TOKEN_IDS))

    def loss(k: int) -> float:
        target = TopK.of(teacher, TOKEN_IDS, k, objective.temperature).said(numbers)
        return towards(student, own, target, TOKEN_IDS, objective).item()

    whole = towards(student, own, said(teacher, wanted), TOKEN_IDS, objective).item()
    assert loss(VOCABULARY - 1) == pytest.approx(whole, rel=1e-4)
    assert loss(4) < loss(32) < whole


def test_the_teacher_reads_once_and_its_cost_is_told_to_those_who_come_later(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    teacher, reads = tiny_model("llama"), []

    def read(*arguments: object, **inputs: Tensor) -> Tensor:
        reads.append(len(inputs["input_ids"]))
        return last_hidden_state(*arguments, **inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(top_k, "last_hidden_state", read)
    first, second = (TopK.of(teacher, TOKEN_IDS, 5, 1.0) for _ in range(2))
    assert reads == [1, 1, 1, 1]
    assert first.reused_seconds == 0 < second.reused_seconds == first.seconds == second.seconds
    assert torch.equal(first.log_probabilities, second.log_probabilities)
    assert torch.equal(first.tokens, second.tokens)
    assert first.mass == second.mass
    TopK.of(tiny_model("llama", seed=1), TOKEN_IDS, 5, 1.0)
    TopK.of(teacher, TOKEN_IDS[:3], 5, 1.0)
    TopK.of(teacher, TOKEN_IDS, 6, 1.0)
    TopK.of(teacher, TOKEN_IDS, 5, 2.0)
    assert len(reads) == 4 + 4 + 3 + 4 + 4
    assert len([each for each in place.iterdir() if each.is_dir()]) == 5


@pytest.mark.parametrize("k", [0, VOCABULARY])
def test_what_leaves_nothing_out_or_keeps_nothing_is_refused(k: int) -> None:
    with pytest.raises(Unsupported, match=f"top_k is {k}, expected 1 to {VOCABULARY - 1}"):
        TopK.of(tiny_model("llama"), TOKEN_IDS, k, 1.0)
