"""Which items were answered right comes back from a record's few hundred characters, and ranks rows as McNemar does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from squeeze.core.errors import IntegrityError
from squeeze.records import ranking as module
from squeeze.records.items import kept, packed, unpacked
from squeeze.records.ranking import ranking_by_answers
from squeeze.records.record import MOST_ITEMS, Record
from squeeze.records.statistics import ALPHA, holm, mcnemar
from squeeze.records.store import LARGEST_RECORD, decode, encode
from tests.fabricated import cell, record


@pytest.mark.parametrize("items", [1, 7, 8, 9, 872, MOST_ITEMS])
def test_answers_come_back_from_their_text(items: int) -> None:
    right = np.random.default_rng(items).random(items) < 0.7
    assert np.array_equal(unpacked(packed(right)), right)
    row = record(cell("rtn", "quantization", {"bits": 4}), item_correct=packed(right))
    read = decode(encode(row))
    assert read == row
    assert len(encode(row)) < LARGEST_RECORD


def test_the_first_item_is_the_highest_bit() -> None:
    assert packed([True, False, False, True, False, False, False, False, True]) == "9:9080"


def test_the_answers_to_all_tasks_are_kept_and_no_baseline_s() -> None:
    arrays = {"b_correct": np.array([True]), "a_correct": np.array([False, True]), "baseline_a_correct": np.ones(2)}
    assert kept(arrays) == "3:60"
    assert kept({}) == kept({"a_correct": np.ones(MOST_ITEMS + 1, dtype=bool)}) == ""


@pytest.mark.parametrize("text", ["8:f", "8:fff", "9:ff", "0:", "8:FF", "8ff", "99999:ff"])
def test_what_does_not_fit_together_is_no_record(text: str) -> None:
    data = record(cell("rtn", "quantization", {"bits": 4}), item_correct="8:ff").to_json()
    assert Record.from_json(data).item_correct == "8:ff"
    with pytest.raises(IntegrityError):
        Record.from_json({**data, "item_correct": text})


def test_records_of_language_models_are_as_they_always_were() -> None:
    assert "item_correct" not in record(cell("rtn", "quantization", {"bits": 4})).to_json()


def answers(rows: int, worst: float, items: int = 872) -> np.ndarray:
    """Rows that lost more and more of what the first one knew, in no order."""
    rng = np.random.default_rng(rows)
    text = rng.random(items)
    noise = 0.02 * rng.standard_normal((rows, items))
    return rng.permutation(text + noise < np.linspace(0.9, 0.9 - worst, rows)[:, None])


@pytest.mark.parametrize("worst", [0.0, 0.05, 0.4])
def test_rows_are_told_apart_where_mcnemar_and_holm_say_so(worst: float) -> None:
    right = answers(9, worst)
    pairs = list(itertools.combinations(range(9), 2))
    adjusted = holm([mcnemar(right[i], right[j])["p_value"] for i, j in pairs])
    told = {pair for pair, p_value in zip(pairs, adjusted, strict=True) if p_value <= ALPHA}
    found = ranking_by_answers(right)
    for row in range(9):
        others = [sum(pair) - row for pair in told if row in pair]
        better = sum(right[other].sum() > right[row].sum() for other in others)
        assert (found.low[row], found.high[row]) == (1 + better, 9 - len(others) + better)
    for i, j in pairs:
        assert bool(set(found.group[i]) & set(found.group[j])) is ((i, j) not in told)
    assert len(told) > 0 or worst < 0.1


def test_one_row_is_the_first() -> None:
    found = ranking_by_answers(np.ones((1, 5), dtype=bool))
    assert (found.low.tolist(), found.high.tolist(), found.group) == ([1], [1], ["a"])


def test_beyond_a_thousand_rows_the_t_test_says_much_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    right = answers(12, 0.4)
    exact = ranking_by_answers(right)
    monkeypatch.setattr(module, "EXACT_ROWS", 10)
    near = ranking_by_answers(right)
    assert np.abs(near.low - exact.low).max() <= 2
    assert near.group == [""] * 12
