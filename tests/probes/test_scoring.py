"""Scoring: what is packed and batched is scored as if it were alone."""

from __future__ import annotations

import pytest
import torch

from squeeze.models.architecture import head, last_hidden_state
from squeeze.probes.scoring import (
    HEAD_ROWS,
    Request,
    Row,
    batches,
    branch_mask,
    by_length,
    log_probabilities,
    one_by_one,
    pack,
    predict,
)
from tests.causal import random_causal
from tests.tiny import CAUSAL, tiny_model

QUESTION = (3, 1, 4, 1, 5)
REQUESTS = [
    Request(QUESTION, (9, 2)),
    Request((2, 7), (1, 8, 2, 8)),
    Request(QUESTION, (6,)),
    Request(QUESTION, (5, 3, 5)),
]


def test_a_context_stands_once_however_many_continuations_it_has() -> None:
    rows = pack(REQUESTS, limit=100)
    assert rows == [
        Row(QUESTION, ((9, 2), (6,), (5, 3, 5)), (0, 2, 3)),
        Row((2, 7), ((1, 8, 2, 8),), (1,)),
    ]
    assert [row.length for row in rows] == [5 + 1 + 0 + 2, 2 + 3]


def test_a_row_grows_no_longer_than_allowed() -> None:
    rows = pack(REQUESTS, limit=7)
    assert max(row.length for row in rows) <= 7
    assert sorted(owner for row in rows for owner in row.owners) == [0, 1, 2, 3]


def test_batches_hold_as_many_rows_as_the_budget_allows_padding_included() -> None:
    rows = by_length(one_by_one([Request((1,) * length, (2,)) for length in (3, 9, 5, 5, 1)]))
    sizes = [[row.length for row in batch] for batch in batches(rows, token_budget=15)]
    assert sizes == [[9], [5, 5, 3], [1]]


def test_a_budget_of_nothing_still_scores_one_row_at_a_time() -> None:
    assert [len(batch) for batch in batches(one_by_one(REQUESTS), token_budget=0)] == [1, 1, 1, 1]


def test_batches_do_not_depend_on_the_order_of_rows() -> None:
    rows = one_by_one(REQUESTS)
    assert by_length(rows) == by_length(rows[::-1])


def test_a_branch_sees_the_context_and_itself() -> None:
    context, left, right, padding = 0, 1, 2, -1
    mask = branch_mask(torch.tensor([[context, left, left, right, padding]]))
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("name", CAUSAL)
def test_hidden_states_are_those_of_each_request_alone(name: str) -> None:
    model = tiny_model(name)
    predicted = predict(model, pack(REQUESTS, limit=100))
    for number, (context, continuation) in enumerate(REQUESTS):
        alone = last_hidden_state(model, input_ids=torch.tensor([[*context, *continuation]]))[0]
        own = predicted.owners == number
        assert predicted.tokens[own].tolist() == list(continuation)
        torch.testing.assert_close(predicted.hidden[own], alone[len(context) - 1 : -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["granite", "gemma2", "cohere"])
def test_what_a_model_does_to_its_logits_is_scored(model_type: str) -> None:
    model, tokens = random_causal(model_type), torch.arange(40)
    found, _ = log_probabilities(model, predict(model, [Row((0,), (tuple(tokens.tolist()),), (0,))]))
    logits = model(input_ids=torch.cat([torch.zeros(1, dtype=torch.int64), tokens[:-1]])[None]).logits[0]
    expected = logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_log_probabilities_are_those_of_a_softmax_whatever_the_chunks() -> None:
    model = tiny_model("llama")
    tokens = torch.arange(3 * HEAD_ROWS + 7) % 200
    predicted = predict(model, [Row((0,), (tuple(tokens.tolist()),), (0,))])
    found, greedy = log_probabilities(model, predicted)
    logits = head(model)(predicted.hidden)
    expected = logits.double().softmax(-1)[torch.arange(len(tokens)), tokens].log()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(greedy, logits.argmax(-1) == tokens)
    likeliest = predicted._replace(tokens=logits.argmax(-1))
    assert log_probabilities(model, likeliest)[1].all()
