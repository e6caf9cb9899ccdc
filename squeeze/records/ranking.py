"""Rank rows as far as tests tell them apart: ranges of places, and letters that rows share which no test parts."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from squeeze.records.statistics import ALPHA, BLOCK_ALPHA, FEWEST_BLOCKS, chunks, holm

ROUNDING = 1e-13  # squared nats: differences below 3e-7 nats are rounding, not rank
EXACT_ROWS = 1_000
MOST_LETTERS = 500  # beyond, letters tell a reader nothing, and their number may grow without bounds

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Ranking(NamedTuple):
    """Hold, for each row, the best and the worst place (1: first) that the tests leave it, and its group's letters.

    Two rows share a letter exactly where no difference between them is shown; "" beyond 1,000 rows or 500 letters.
    """

    low: Counts
    high: Counts
    group: list[str]


def ranking(blocks: npt.ArrayLike) -> Ranking:
    """Rank the rows of one comparable group from 1 + the number shown better to n - the number shown worse.

    blocks: (rows, n) mean NLL of the same n token blocks; lower is better. Every pair of rows is tested with the paired
    t-test on its block differences, held to BLOCK_ALPHA (at 5 %, it gave 4.6-6.1 % false alarms at 16-256
    autocorrelated blocks; the plain bootstrap gave 5.6-8.8 %), and so at a family-wise 5 % by Holm over all pairs.
    With fewer than 16 blocks no row is better.

    Holm is run as its paper's title says, sequentially: Bonferroni over the pairs that still stand, until a pass
    rejects no more. Beyond 140 rows it ends when a pass adds less than 0.01 % of the pairs, which errs on the cautious
    side. Beyond 1,000 rows ranks are approximate: a pass bisects (see ``_boundaries``) instead of testing all pairs,
    so that 100,000 rows take seconds, not hours; and rows have no letters.
    """
    nll = np.asarray(blocks)
    rows, n = nll.shape
    if rows < 2 or n < FEWEST_BLOCKS:
        return Ranking(np.ones(rows, dtype=np.int64), np.full(rows, rows, dtype=np.int64), ["a"] * rows)
    order = np.argsort(nll.mean(axis=1, dtype=np.float64), kind="stable")
    nll, pairs, rejected = nll[order], rows * (rows - 1) // 2, 0
    while True:
        critical = float(scipy.stats.t.isf(BLOCK_ALPHA / 2 / max(pairs - rejected, 1), n - 1))
        if rows <= EXACT_ROWS:
            told = _told_apart(nll, critical)
            better, worse = told.sum(axis=1), told.sum(axis=0)
        else:
            told = None
            better = _boundaries(nll, critical)
            worse = rows - np.searchsorted(np.sort(better), np.arange(rows), side="right")
        found, rejected = int(better.sum()) - rejected, int(better.sum())
        if found <= pairs // 10_000:
            break
    return _ranges(order, better, worse, [""] * rows if told is None else letters(told))


def ranking_by_answers(right: npt.ArrayLike) -> Ranking:
    """Rank the classifiers of one comparable group by the items that they answered right, as ``ranking`` by losses.

    right: (rows, items) bool, of the same items. Every pair of rows is tested by McNemar's exact test
    (``statistics.mcnemar``), at a family-wise 5 % by Holm over all pairs. Beyond 1,000 rows the paired t-test over
    items takes its place, which comes to the same where many answers differ.
    """
    answers = np.asarray(right, dtype=bool)
    rows = len(answers)
    if rows > EXACT_ROWS:
        return ranking(1.0 - answers)
    order = np.argsort(-answers.mean(axis=1), kind="stable")
    ordered = answers[order].astype(np.float64)
    ahead = ordered @ (1.0 - ordered).T  # items that row i answers right and row j does not
    later, earlier = np.tril_indices(rows, -1)
    won, lost = ahead[earlier, later], ahead[later, earlier]
    p_values = np.minimum(2 * scipy.stats.binom.cdf(np.minimum(won, lost), won + lost, 0.5), 1.0)
    told = np.zeros((rows, rows), dtype=bool)
    told[later, earlier] = holm(p_values) <= ALPHA
    return _ranges(order, told.sum(axis=1), told.sum(axis=0), letters(told))


def letters(told_apart: npt.NDArray[np.bool_]) -> list[str]:
    """Return a compact letter display: rows share a letter exactly where they are not told apart.

    told_apart: (rows, rows), lower triangle, true where a pair differs. Insert-and-absorb (Piepho 2004, "An algorithm
    for a letter-based representation of all-pairwise comparisons"), the pairs of a row inserted together: each group
    that holds rows which the new one differs from is parted, and groups within others are absorbed. Letters follow the
    order of the groups' first rows; after z come a1, b1, ... All are "" where they would be more than MOST_LETTERS.
    """
    rows = len(told_apart)
    groups: set[int] = set()  # each a set of rows, as bits
    for row in range(rows):
        alike = sum(1 << int(other) for other in np.flatnonzero(~told_apart[row, :row]))
        bit = 1 << row
        joined = _largest({(group & alike) | bit for group in groups} or {bit})
        groups = {group for group in groups if group & ~alike} | joined
        if len(groups) > MOST_LETTERS:
            return [""] * rows
    ordered = sorted(groups, key=lambda group: [row for row in range(rows) if group >> row & 1])
    names = [f"{ascii_lowercase[number % 26]}{number // 26 or ''}" for number in range(len(ordered))]
    return [
        "".join(name for name, group in zip(names, ordered, strict=True) if group >> row & 1) for row in range(rows)
    ]


def _ranges(order: Counts, better: Counts, worse: Counts, groups: list[str]) -> Ranking:
    """Return the ranking of rows; the rest are of those in order: how many are shown better and worse, and letters."""
    rows = len(order)
    place = np.empty(rows, dtype=np.int64)
    place[order] = np.arange(rows)
    return Ranking((1 + better)[place], (rows - worse)[place], [groups[each] for each in place])


def _largest(groups: Iterable[int]) -> set[int]:
    """Return the groups that lie within no other."""
    kept: list[int] = []
    for group in sorted(groups, key=int.bit_count, reverse=True):
        if all(group & ~other for other in kept):
            kept.append(group)
    return set(kept)


def _told_apart(nll: Array, critical: float) -> npt.NDArray[np.bool_]:
    """Tell for each row i which rows j < i are better by more than ``critical`` errors; (rows, n) ascend in mean.

    With m the means and x the centred rows, scaled so that x.x is the variance of a mean, the squared test is
        (m_i - m_j)^2 - c^2 |x_i - x_j|^2 = s_i + s_j + 2 (c^2 x_i.x_j - m_i m_j),   s = m^2 - c^2 x.x,
    so one matrix product of extended rows tests all pairs.
    """
    n = nll.shape[1]
    means = nll.mean(axis=1, keepdims=True, dtype=np.float64)
    scaled = critical * (nll - means) / np.sqrt(n * (n - 1))
    means -= means.mean()
    halves = (means**2 - (scaled**2).sum(axis=1, keepdims=True)) / 2
    ones = np.ones_like(halves)
    tests = np.hstack([scaled, -means, halves, ones]) @ np.hstack([scaled, means, ones, halves]).T
    return np.asarray(np.tril(tests > ROUNDING, -1))  # rows further down are never better


def _boundaries(nll: Array, critical: float) -> Counts:
    """Count the rows that are better than each, where significance falls steadily along the order of the means.

    Each row then has one boundary, before which all rows are better, and log2(rows) tests find it. Rows that vary
    unlike their neighbours blur it: ranks move by a tenth where the noise of rows differs tenfold.
    """
    low: Counts = np.zeros(len(nll), dtype=np.int64)
    high: Counts = np.arange(len(nll))
    while (low < high).any():
        middle = (low + high + 1) // 2
        significant = _worse_than(nll, middle - 1, critical)
        low, high = np.where(significant, middle, low), np.where(significant, high, middle - 1)
    return low


def _worse_than(nll: Array, others: npt.NDArray[np.int64], critical: float) -> npt.NDArray[np.bool_]:
    """Tell whether each row is worse than row ``others`` by more than ``critical`` standard errors."""
    rows, n = nll.shape
    result = np.zeros(rows, dtype=bool)
    start = 0
    for size in chunks(rows, n):
        part = slice(start, start + size)
        differences = nll[part].astype(np.float64) - nll[others[part]]
        means = differences.mean(axis=1)
        squares = np.einsum("ij,ij->i", differences, differences)
        variances = np.maximum(squares / n - means**2, 0.0) / (n - 1)
        result[part] = means > critical * np.sqrt(variances) + np.sqrt(ROUNDING)
        start += size
    return result
