"""Ranks are ranges, and letters say which rows no test tells apart: held against the definitions, word by word."""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from squeeze.records import ranking as module
from squeeze.records import statistics
from squeeze.records.ranking import letters, ranking
from squeeze.records.statistics import BLOCK_ALPHA, holm
from tests.losses import board


def told_apart_pair_by_pair(blocks):
    """The pairs (better, worse) that are told apart: the definition."""
    pairs = list(itertools.combinations(range(len(blocks)), 2))
    adjusted = holm([stats.ttest_rel(blocks[i], blocks[j]).pvalue for i, j in pairs])
    told = [pair for pair, p_value in zip(pairs, adjusted, strict=True) if p_value <= BLOCK_ALPHA]
    return {tuple(sorted(pair, key=lambda row: blocks[row].mean())) for pair in told}


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.05, 1.0])
def test_a_range_counts_the_rows_shown_better_and_worse(spread):
    blocks = np.random.default_rng(1).permutation(board(np.random.default_rng(0), 12, spread))
    told = told_apart_pair_by_pair(blocks)
    found = ranking(blocks)
    for row in range(12):
        assert found.low[row] == 1 + sum(worse == row for _, worse in told)
        assert found.high[row] == 12 - sum(better == row for better, _ in told)


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.05, 1.0])
def test_rows_share_a_letter_exactly_where_they_are_not_told_apart(spread):
    blocks = np.random.default_rng(1).permutation(board(np.random.default_rng(0), 12, spread))
    told = told_apart_pair_by_pair(blocks)
    group = ranking(blocks).group
    for one, other in itertools.combinations(range(12), 2):
        assert bool(set(group[one]) & set(group[other])) is not ({(one, other), (other, one)} & told != set())
    assert "a" in group[int(np.argmin(blocks.mean(axis=1)))]


def test_letters_by_hand():
    """Piepho's case: the first and the last differ, the middle is like both; and a relation that is no line."""
    told = np.zeros((3, 3), dtype=bool)
    assert letters(told) == ["a", "a", "a"]
    told[2, 0] = True
    assert letters(told) == ["a", "ab", "b"]
    square = np.zeros((4, 4), dtype=bool)
    square[2, 0] = square[3, 1] = True
    shared = {
        (i, j) for i, j in itertools.combinations(range(4), 2) if set(letters(square)[i]) & set(letters(square)[j])
    }
    assert shared == {(0, 1), (0, 3), (1, 2), (2, 3)}


def test_after_z_letters_have_numbers_and_too_many_are_none(monkeypatch):
    told = np.tril(np.ones((30, 30), dtype=bool), -1)
    assert letters(told)[24:28] == ["y", "z", "a1", "b1"]
    monkeypatch.setattr(module, "MOST_LETTERS", 20)
    assert set(letters(told)) == {""}


def test_rows_that_cannot_be_told_apart_share_a_rank():
    rng = np.random.default_rng(0)
    best, equal, worst = board(rng, 3, 0.0)
    blocks = np.stack([worst + 1.0, best, equal, best, best + 1e-9])
    assert ranking(blocks).low.tolist() == [5, 1, 1, 1, 1]


def test_too_few_blocks_or_rows_rank_nobody_behind():
    assert ranking(np.arange(30.0).reshape(2, 15)).low.tolist() == [1, 1]
    assert ranking(np.ones((1, 256))).low.tolist() == [1]


def test_large_boards_are_ranked_alike(monkeypatch):
    blocks = board(np.random.default_rng(0), 300, 0.1)
    exact = ranking(blocks)
    monkeypatch.setattr(module, "EXACT_ROWS", 10)
    monkeypatch.setattr(statistics, "CHUNK", 10_000)
    quick = ranking(blocks)
    for one, other in zip(quick[:2], exact[:2], strict=True):
        shifts = np.abs(one - other)
        assert shifts.mean() < 1
        assert shifts.max() < 0.1 * exact.low.max()
    assert exact.low.max() > 200
    assert set(quick.group) == {""}


def test_a_hundred_thousand_rows_are_ranked_in_seconds():
    """A tenth of them, in CPU time; and the thousand of which all pairs are tested and lettered."""
    rng = np.random.default_rng(0)
    before = time.process_time()
    large, exact = ranking(board(rng, 10_000, 0.5)[:, :64]), ranking(board(rng, 1_000, 0.5)[:, :64])
    assert time.process_time() - before < 10
    assert (large.low <= large.high).all()
    assert (exact.low <= exact.high).all()
