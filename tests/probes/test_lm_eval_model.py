"""Our lm-eval model: the scores are HFLM's, perplexity is that of a plain loop."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import processors
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.models.subject import Subject
from squeeze.probes.lm_eval_model import Windows, max_length, subject_lm
from tests.tiny import CAUSAL, tiny_subject

TEXT = "Grüße: the quick brown fox — naïve, 東京 — jumps over the lazy dog.\n" * 6


def instance(*arguments: str) -> Instance:
    return Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)


def questions(subject: Subject) -> list[Instance]:
    """Choices behind shared contexts, contexts that end in a space, empty and too long ones, a right greedy guess."""
    letters = random.Random(0)

    def words(most: int) -> str:
        return " ".join("".join(letters.choices("abcdefgh", k=letters.randint(1, 9))) for _ in range(most))

    pairs = []
    for number in range(12):
        context = words(1 + number) + letters.choice(["", " ", ":"])
        pairs += [(context, " " + words(letters.randint(1, 4))) for _ in range(letters.randint(1, 4))]
    limit = subject.model.config.max_position_embeddings
    pairs += [("", "empty context"), ("abc", "d"), ("abc", "e"), ("x" * limit, " too long by far")]
    return [instance(*pair) for pair in [*pairs, right_guess(subject)]]


def right_guess(subject: Subject) -> tuple[str, str]:
    """A context and the token that the model finds likeliest behind it, one that is whole text."""
    for context in "abcdefghijklmnopqrstuvwxyz":
        logits = subject.model(torch.tensor([subject.tokenizer.encode(context)])).logits[0, -1]
        guess = subject.tokenizer.decode(logits.argmax())
        if guess.isalnum() and subject.tokenizer.encode(guess) == [int(logits.argmax())]:
            return context, guess
    raise AssertionError("no letter of the alphabet is followed by another")


def score(subject: Subject, requests: list[Instance], token_budget: int = 256, packed: bool = True) -> list:
    return subject_lm(subject, Windows(1, 1, 1), token_budget=token_budget, packed=packed).loglikelihood(requests)


@pytest.fixture(params=CAUSAL)
def subject(request: pytest.FixtureRequest) -> Subject:
    return tiny_subject(request.param)


@pytest.fixture
def llama() -> Subject:
    return tiny_subject("llama")


@pytest.mark.parametrize(("packed", "token_budget"), [(True, 256), (False, 256), (False, 0)])
def test_scores_are_those_of_lm_evals_own_model(
    subject: Subject, packed: bool, token_budget: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    requests = questions(subject)
    expected = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=4).loglikelihood(requests)
    found = score(subject, requests, token_budget, packed)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert found[-1][1], "the likeliest token was not found greedy"
    assert np.abs(np.subtract([value for value, _ in found], [value for value, _ in expected])).max() < 1e-3


def test_a_text_begins_once_where_the_tokenizer_adds_a_bos(llama: Subject, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    bos = llama.tokenizer.bos_token
    llama.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, llama.tokenizer.bos_token_id)]
    )
    requests = [instance("Who?", " me"), instance(f"{bos}Who?", " me"), instance("", "Who?"), instance(bos, "Who?")]
    expected = HFLM(pretrained=llama.model, tokenizer=llama.tokenizer, batch_size=1).loglikelihood(requests)
    found = score(llama, requests)
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], atol=1e-3)
    assert found[0][0] == pytest.approx(found[1][0])


def test_a_continuation_longer_than_the_model_is_refused(llama: Subject) -> None:
    with pytest.raises(SqueezeError, match="2,049 tokens to score, expected 1 to 2,048"):
        score(llama, [instance("a", "b" * 2049)])


def test_an_empty_continuation_is_refused(llama: Subject) -> None:
    with pytest.raises(SqueezeError, match="0 tokens to score, expected 1 to"):
        score(llama, [instance("a", "")])


def test_generation_is_refused(llama: Subject) -> None:
    with pytest.raises(SqueezeError, match="1 requests ask for generated text"):
        subject_lm(llama, Windows(1, 1, 1), token_budget=64).generate_until([instance("a", "b")])


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (Windows(10, 4, 4), [(0, 1, 4), (4, 5, 8), (8, 9, 10)]),
        (Windows(9, 4, 4), [(0, 1, 4), (4, 5, 8)]),
        (Windows(10, 4, 2), [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]),
        (Windows(3, 8, 8), [(0, 1, 3)]),
    ],
)
def test_windows_score_each_token_once_where_they_overlap(
    windows: Windows, expected: list[tuple[int, int, int]]
) -> None:
    assert windows.spans() == expected
    assert windows.scored == sum(end - first for _, first, end in expected)


def plain_loop(model: nn.Module, ids: list[int], windows: Windows) -> list[float]:
    """Token losses in nats, one window after the other, as one would write it without this library."""
    losses, scored = [], 0
    for start in range(0, windows.tokens, windows.stride):
        window = ids[start : min(start + windows.window, windows.tokens)]
        logits = model(torch.tensor([window])).logits[0].double()
        for position in range(max(1, scored - start), len(window)):
            losses += [-logits[position - 1].log_softmax(-1)[window[position]].item()]
        scored = start + len(window)
        if scored == windows.tokens:
            break
    return losses


@pytest.mark.promise(12)
@pytest.mark.parametrize("windows", [Windows(150, 32, 32), Windows(150, 32, 8)])
@pytest.mark.parametrize("token_budget", [0, 100])
def test_perplexity_is_that_of_a_plain_loop(subject: Subject, windows: Windows, token_budget: int) -> None:
    lm = subject_lm(subject, windows, token_budget=token_budget)
    total = lm.loglikelihood_rolling([instance(TEXT)])
    expected = plain_loop(subject.model, subject.tokenizer.encode(TEXT, add_special_tokens=False), windows)
    np.testing.assert_allclose(lm.scores.nll, expected, rtol=1e-4)
    assert lm.scores.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-4)
    assert total == [pytest.approx(-sum(expected), rel=1e-4)]
    assert lm.scores.window.tolist() == [
        number for number, (_, first, end) in enumerate(windows.spans()) for _ in range(first, end)
    ]


@pytest.mark.promise(12)
def test_the_difference_from_a_plain_loop_is_rounding(figure: Callable[[str], None]) -> None:
    windows, errors = Windows(400, 100, 50), []
    for subject in map(tiny_subject, CAUSAL):
        lm = subject_lm(subject, windows, token_budget=200)
        lm.loglikelihood_rolling([instance(TEXT)])
        losses = plain_loop(subject.model, subject.tokenizer.encode(TEXT, add_special_tokens=False), windows)
        errors.append(abs(lm.scores.perplexity / math.exp(sum(losses) / len(losses)) - 1))
    assert max(errors) < 1e-4
    figure(f"token perplexity of {len(errors)} architectures: within {max(errors):.0e} of an independent loop's")


def test_bits_per_byte_counts_the_text_of_scored_tokens_only(llama: Subject) -> None:
    lm = subject_lm(llama, Windows(100, 10, 10), token_budget=64)
    lm.loglikelihood_rolling([instance("a" * 200)])
    assert lm.scores.text_bytes == 90  # ten windows, in each of which one token is context
    assert lm.scores.bits_per_byte == pytest.approx(math.log2(lm.scores.perplexity), rel=1e-5)


def test_a_character_of_several_tokens_is_counted_once(llama: Subject) -> None:
    windows = Windows(len(TEXT.encode()), 10**6, 10**6)
    lm = subject_lm(llama, windows, token_budget=64)
    lm.loglikelihood_rolling([instance(TEXT)])
    assert lm.scores.text_bytes == len(TEXT.encode()) - 1  # a byte a token; the first is not scored


def test_hidden_states_are_observed_in_order_and_give_the_scores(llama: Subject) -> None:
    seen: list[torch.Tensor] = []
    lm = subject_lm(llama, Windows(150, 32, 8), token_budget=70, observe=seen.append)
    lm.loglikelihood_rolling([instance(TEXT)])
    ids = llama.tokenizer.encode(TEXT, add_special_tokens=False)
    scored = [token for _, first, end in lm.windows.spans() for token in ids[first:end]]
    log_probability = llama.model.lm_head(torch.cat(seen)).log_softmax(-1)
    np.testing.assert_allclose(lm.scores.nll, -log_probability[range(len(scored)), scored].numpy(), rtol=1e-4)
    assert len(seen) > 1


def test_too_short_a_text_is_refused(llama: Subject) -> None:
    with pytest.raises(SqueezeError, match="has 5 tokens, the protocol asks for 6"):
        subject_lm(llama, Windows(6, 4, 4), token_budget=64).loglikelihood_rolling([instance("abcde")])


def test_an_overflowing_perplexity_is_infinite_without_a_warning(llama: Subject) -> None:
    lm = subject_lm(llama, Windows(20, 10, 10), token_budget=64)
    lm.loglikelihood_rolling([instance(TEXT)])
    lm.scores.nll[:] = 1e4
    assert lm.scores.perplexity == math.inf


def test_the_models_positions_are_found_under_every_name(subject: Subject) -> None:
    assert max_length(subject.model.config, subject.tokenizer) == 2048
