"""Compute the statistics behind every verdict. numpy and scipy only.

The unit of replication is what varies independently: a *process* for timings, a *block of consecutive
tokens* for perplexity, an *item* for accuracy. Everything is paired with the baseline on that unit. The
false-alarm and detection rates of these procedures are simulated in tests/records/test_simulations.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import scipy  # imports scipy.stats when first used: a measuring process, which only asks `steady`, is spared it

from squeeze.records.record import Estimate

ALPHA = 0.05
FEWEST_ROUNDS = 5  # below, a process-level interval is wider than any difference worth knowing
FEWEST_BLOCKS = 16  # below, neither the bootstrap nor the t approximation keeps its 5 %
TOKEN_BLOCK = 512  # tokens: those of 64 depend on their neighbours so much that 8 % of equal texts are called different
FEWEST_ITEMS = 5_000  # below, "keeps 97 % of accuracy" cannot be shown at accuracies near 0.5
FEWEST_TEXTS = 500  # of classifiers, whose accuracies are near 0.9: the bound keeps its 5 % there
RESAMPLES = 5_000
# Level of the tests on token blocks, neighbours of which still depend on each other a little: at 0.05 they call 5.5 to
# 6.0 % of equal texts different, at 0.04 4.4 to 4.9 % (100,000 texts of 16 to 128 blocks that begin within a window).
BLOCK_ALPHA = 0.04

FEWEST_VALUES = 5
DRIFT_TOLERANCE = 0.10  # of the median; accepts 5 % noise in 99 % of trials, refuses a ramp of 20 % in 99 %
OUTLIER_TOLERANCE = 0.05
FEWEST_OF_TREND = 8  # values: a quarter is a pair

CHUNK = 2_000_000  # elements of a temporary array: bounds the memory of resampling and of pairwise tests

Array = npt.NDArray[np.float64]


class Flips(TypedDict):
    """Count answers that changed against the baseline; p_value: exact, two-sided, of "both ways equally likely"."""

    right_to_wrong: int
    wrong_to_right: int
    p_value: float


def ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Return the geometric mean over rounds of ``candidate / baseline``, one process median of each per round.

    Give rates (tokens/s) for a speed-up. The 95 % interval and the p-value (of "the ratio is 1") are Student's t
    on the log ratios; with fewer than 5 rounds they are None. Candidates of one block may share a baseline.

    Raises ValueError when the rounds are not paired, or a median is not a positive, finite number.
    """
    medians = _paired(candidate, baseline, "rounds")
    if not (np.isfinite(medians) & (medians > 0)).all():
        raise ValueError(f"medians must be positive and finite, found {list(candidate)} and {list(baseline)}")
    return _geometric_mean(np.log(medians[0] / medians[1]), FEWEST_ROUNDS)


def perplexity_ratio(candidate: npt.ArrayLike, baseline: npt.ArrayLike) -> Estimate:
    """Return the candidate's perplexity over the baseline's, from the mean NLL (n,), nats, of the same n token blocks.

    The 95 % interval and the p-value (of "the ratio is 1") are Student's t on the blocks' differences, as in
    ``ranking``, held to BLOCK_ALPHA; with fewer than 16 blocks they are None.
    Raises ValueError when the blocks are not paired.
    """
    one, other = _paired(candidate, baseline, "token blocks")
    found = _geometric_mean(one - other, FEWEST_BLOCKS, BLOCK_ALPHA)
    return found if found.p_value is None else replace(found, p_value=_of_blocks(found.p_value))


def perplexity_delta(candidate_nll: npt.ArrayLike, baseline_nll: npt.ArrayLike, block: int, seed: int) -> Estimate:
    """Return how far the perplexity exp(mean NLL) lies above the baseline's on the same tokens (absolute).

    candidate_nll, baseline_nll: (tokens,), nats, in text order. ``n`` counts the blocks, of equal length to
    within one token, ``block`` tokens each as nearly as that goes.

    The 95 % interval comes from a paired bootstrap over blocks: both models are resampled with the same blocks, and
    the percentiles are expanded for small samples (Hesterberg 2015, "What teachers should know about the bootstrap",
    section 4.3), without which 16 blocks give 9 % false alarms. The p-value is the paired t-test on the blocks'
    mean differences: a bootstrap cannot resolve the small p-values that a correction over a board needs. Both are
    held to BLOCK_ALPHA: the interval is one of 96 % of independent blocks, the p-value that of the test times 1.25.
    With fewer than 16 blocks both are None.

    Raises ValueError when the models did not score the same tokens, or a value is not finite.
    """
    nll = _paired(candidate_nll, baseline_nll, "token NLLs")
    if not np.isfinite(nll).all():
        raise ValueError(f"token NLLs must be finite, found {int((~np.isfinite(nll)).sum())} that are not")
    count = max(1, round(nll.shape[1] / block))
    starts = np.arange(count) * nll.shape[1] // count
    sums = np.add.reduceat(nll, starts, axis=1)  # (2, blocks)
    lengths = np.diff(starts, append=nll.shape[1])
    value = float(_perplexity_difference(nll.mean(axis=1)))
    blocks = starts.size
    if blocks < FEWEST_BLOCKS:
        return Estimate(value, n=blocks)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(blocks, size=(size, blocks)) for size in chunks(RESAMPLES, blocks))
    deltas = [_perplexity_difference(sums[:, rows].sum(-1) / lengths[rows].sum(-1)) for rows in drawn]
    tail = scipy.stats.norm.sf(scipy.stats.t.isf(BLOCK_ALPHA / 2, blocks - 1) * np.sqrt(blocks / (blocks - 1)))
    low, high = np.quantile(np.concatenate(deltas), [tail, 1 - tail]).tolist()
    return Estimate(value, low, high, _of_blocks(_t_test((sums[0] - sums[1]) / lengths)[2]), blocks)


def block_means(nll: npt.ArrayLike, blocks: int) -> list[float]:
    """Return mean NLL of at most ``blocks`` runs of consecutive tokens, of equal length to within one token.

    This is what a record keeps of nll (tokens,): enough to rank rows pairwise, small enough to read by the 100,000.
    """
    values = np.asarray(nll, dtype=np.float64)
    return [float(run.mean()) for run in np.array_split(values, max(1, min(blocks, values.size))) if run.size]


def token_blocks(tokens: int) -> int:
    """Return into how many blocks a text is parted: as many as come nearest to 512 tokens each.

    To within one token: 8 windows of 1,024, of which each predicts 1,023, make 16 blocks of 511 or 512.
    """
    return max(1, round(tokens / TOKEN_BLOCK))


def block_mean(values: npt.ArrayLike, blocks: int, least: float = -np.inf, most: float = np.inf) -> Estimate:
    """Return the mean of values (tokens,) in text order, with Student's 95 % interval over so many blocks of them.

    least, most: where the figure itself must lie; the interval ends there. ``n`` counts the blocks.
    """
    each = np.asarray(values, dtype=np.float64)
    return replace(student_mean(block_means(each, blocks), least, most), value=float(each.mean()))


def student_mean(units: npt.ArrayLike, least: float = -np.inf, most: float = np.inf) -> Estimate:
    """Return the mean of independent units (n,) with Student's 95 % interval; with fewer than 16 it has none."""
    centre, error, _ = _t_test(np.asarray(units, dtype=np.float64))
    n = np.size(units)
    if n < FEWEST_BLOCKS:
        return Estimate(centre, n=n)
    half = error * float(scipy.stats.t.isf(ALPHA / 2, n - 1))
    return Estimate(centre, max(centre - half, least), min(centre + half, most), n=n)


def mcnemar(candidate: npt.ArrayLike, baseline: npt.ArrayLike) -> Flips:
    """Test two models' answers to the same items by McNemar's exact test (binomial on the discordant pairs).

    candidate, baseline: (items,), true where the answer was right. Raises ValueError when they are not paired.
    """
    right, was_right = _paired(candidate, baseline, "items").astype(bool)
    lost, won = int((was_right & ~right).sum()), int((right & ~was_right).sum())
    p_value = float(scipy.stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return Flips(right_to_wrong=lost, wrong_to_right=won, p_value=p_value)


def accuracy_change(candidate: npt.ArrayLike, baseline: npt.ArrayLike) -> Estimate:
    """Return the candidate's accuracy less the baseline's on the same items, with McNemar's exact p-value.

    The 95 % interval is Wald's with one flip added each way (Bonett & Price 2012, "Adjusted Wald confidence interval
    for a difference of binomial proportions based on paired data"): it stays open where no answer changed.

    candidate, baseline: (items,), true where the answer was right. Raises ValueError when they are not paired.
    """
    flips = mcnemar(candidate, baseline)
    n = np.size(candidate)
    lost, won = ((flips[way] + 1) / (n + 2) for way in ("right_to_wrong", "wrong_to_right"))
    half = scipy.stats.norm.isf(ALPHA / 2) * np.sqrt((won + lost - (won - lost) ** 2) / (n + 2))
    value = (flips["wrong_to_right"] - flips["right_to_wrong"]) / n
    return Estimate(value, float(won - lost - half), float(won - lost + half), flips["p_value"], n)


def standard_error(correct: npt.ArrayLike) -> float | None:
    """Return the standard error of an accuracy p over n items: sqrt(p (1 - p) / (n - 1)); None for fewer than two."""
    right = np.asarray(correct, dtype=np.float64)
    accuracy, items = float(right.mean()), right.size
    return float(np.sqrt(accuracy * (1 - accuracy) / (items - 1))) if items > 1 else None


def retained_accuracy(candidate: npt.ArrayLike, baseline: npt.ArrayLike, fewest: int = FEWEST_ITEMS) -> float | None:
    """Return the share of the baseline's accuracy that the candidate keeps at least: a one-sided 95 % lower bound.

    "Keeps 97 % of accuracy" may be said when this is above 0.97. The bound is Wald's on the log ratio of two paired
    proportions (Nam & Blackwelder 2002, eq. 2); with fewer than ``fewest`` paired items it is None.
    """
    right, was_right = _paired(candidate, baseline, "items").astype(bool)
    kept, had = int(right.sum()), int(was_right.sum())
    if right.size < fewest or kept == 0 or had == 0:
        return None
    error = np.sqrt((right != was_right).sum() / (kept * had))
    return float(kept / had * np.exp(-scipy.stats.norm.isf(ALPHA) * error))


def fewest_items(classifier: bool) -> int:
    """Return how many items a bound on the accuracy that is kept takes."""
    return FEWEST_TEXTS if classifier else FEWEST_ITEMS


def holm(p_values: npt.ArrayLike) -> Array:
    """Return Holm's (1979) adjusted p-values of one family of tests, in its order; NaN marks no test and stays NaN."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    stepped = np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1))
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def steady(values: Sequence[float]) -> bool:
    """Tell whether times, in the order they were taken, look like draws from one settled state.

    True when the medians of consecutive windows (two, or four from 16 values on) agree within 10 %, the middle half of
    the values lies within 10 % (no second mode), and no spike moves the mean from the median by more than 5 %.
    Fewer than 5 values, or one that is not a positive, finite number, are never steady.
    """
    times = np.asarray(values, dtype=np.float64)
    if times.size < FEWEST_VALUES or not (np.isfinite(times) & (times > 0)).all():
        return False
    windows = [np.median(window) for window in np.array_split(times, 4 if times.size >= 16 else 2)]
    median = np.median(times)
    drift, spread = np.ptp(windows) / median, np.subtract(*np.quantile(times, [0.75, 0.25])) / median
    pull = abs(times.mean() / median - 1)
    return bool(drift <= DRIFT_TOLERANCE and spread <= DRIFT_TOLERANCE and pull <= OUTLIER_TOLERANCE)


def trend(values: npt.ArrayLike) -> float:
    """Return by what share times, in the order they were taken, moved: median of the last quarter over the first's - 1.

    Fewer than 8 values show none: 0.
    """
    times = np.ravel(np.asarray(values, dtype=np.float64))
    quarter = times.size // 4
    if times.size < FEWEST_OF_TREND:
        return 0.0
    return float(np.median(times[-quarter:]) / np.median(times[:quarter]) - 1)


def _paired(candidate: npt.ArrayLike, baseline: npt.ArrayLike, unit: str) -> Array:
    """Return (2, n) float64; raises ValueError when the two are not one value for each of the same n > 0 units."""
    one, other = np.asarray(candidate, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape or one.size == 0:
        raise ValueError(f"{unit} must be paired: {one.shape} of the candidate, {other.shape} of the baseline")
    return np.stack([one, other])


def _of_blocks(p_value: float) -> float:
    """Return the p-value of a test on token blocks as one that is held against ALPHA like any other."""
    return min(1.0, p_value * ALPHA / BLOCK_ALPHA)


def _geometric_mean(logs: Array, fewest: int, level: float = ALPHA) -> Estimate:
    """Return exp(mean of ``logs``), with Student's interval and p-value where there are at least ``fewest``.

    level: what of such intervals misses.
    """
    centre, error, p_value = _t_test(logs)
    if logs.size < fewest:
        return Estimate(float(np.exp(centre)), n=logs.size)
    half = error * scipy.stats.t.isf(level / 2, logs.size - 1)
    value, low, high = np.exp([centre, centre - half, centre + half]).tolist()
    return Estimate(value, low, high, p_value, logs.size)


def _t_test(differences: Array) -> tuple[float, float, float]:
    """Return the mean, its standard error, and Student's two-sided p-value that the mean is zero."""
    centre, n = float(differences.mean()), differences.size
    error = float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    if error == 0:
        return centre, error, float(centre == 0)
    return centre, error, float(2 * scipy.stats.t.sf(abs(centre) / error, n - 1))


def _perplexity_difference(mean_nll: Array) -> Array:
    """Return the difference of perplexities (...) of mean_nll (2, ...), the candidate's and the baseline's."""
    candidate, baseline = np.exp(mean_nll)
    return np.asarray(candidate - baseline)


def chunks(rows: int, columns: int) -> Iterator[int]:
    """Yield sizes of consecutive runs of ``rows``, each of at most CHUNK elements."""
    size = max(1, CHUNK // columns)
    for start in range(0, rows, size):
        yield min(size, rows - start)
