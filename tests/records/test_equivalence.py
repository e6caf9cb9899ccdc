"""That models are equivalent is seldom said of two that differ by more than the margin, under measured noise."""

import os
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from squeeze.records.answers import ACCURACY, PERPLEXITY, SPEED
from squeeze.records.record import Estimate
from squeeze.records.statistics import ALPHA, perplexity_delta
from tests.equivalence import ACCURACY_MARGIN, PERPLEXITY_MARGIN, SPEED_MARGIN, TOKEN_BLOCK, accuracy_change, equivalent
from tests.noise import RUNS, extended, in_turns, measured, one_after_the_other, student

TRIALS = int(os.environ.get("SQUEEZE_TEST_TRIALS", "1000"))
BEYOND = 1.001  # of the margin
DESIGNS = {"in turns": in_turns, "one after the other": one_after_the_other}
PIECE = 1024  # tokens of a measured text that stay together: further apart, losses are taken for independent


def assert_at_most_five_per_cent(said):
    said = np.asarray(said)
    assert stats.binomtest(int(said.sum()), said.size, ALPHA, alternative="greater").pvalue > 0.01, said.mean()


def said_of_speeds(design, run, slowdown):
    rng = np.random.default_rng(20260101)
    logs = DESIGNS[design](rng, run, TRIALS, slowdown)
    _, half, counts = extended(logs)
    means = np.array([rounds[:count].mean() for rounds, count in zip(logs[:, 0], counts[:, 0], strict=True)])
    low, high = means - half[:, 0], means + half[:, 0]
    return equivalent(SPEED, np.exp(means), np.exp(low), np.exp(high), counts[:, 0])


def said_of_perplexities(changes, texts, tokens, ratio, seed=0):
    """Of texts whose tokens change as those of a measured row, (tokens,), on average by the log of ``ratio``."""
    rng = np.random.default_rng(seed)
    changes = changes - changes.mean() + np.log(ratio)
    said = []
    for _ in range(texts):
        starts = rng.integers(changes.size, size=tokens // PIECE)
        drawn = changes[(starts[:, None] + np.arange(PIECE)) % changes.size].ravel()
        baseline = rng.gamma(1.0, 2.6, size=tokens)
        delta = perplexity_delta(baseline + drawn, baseline, block=TOKEN_BLOCK, seed=0)
        before = np.exp(baseline.mean())
        relative = (1 + each / before for each in (delta.value, delta.low, delta.high))
        said.append(equivalent(PERPLEXITY, *relative, delta.n))
    return np.array(said)


def said_of_accuracies(flips, items, change, trials=TRIALS, rule=accuracy_change):
    """Of answers of which as many flip as in a measured row (lost, won, items), more of them lost by ``change``."""
    rng = np.random.default_rng(20260101)
    lost, won, measured_items = flips
    either = max((lost + won) / measured_items, change)
    chances = [(either + change) / 2, (either - change) / 2, 1 - either]
    counts = Counter(map(tuple, rng.multinomial(items, chances, size=trials)))
    said = []
    for (lost, won, _), times in counts.items():
        baseline, candidate = np.zeros((2, items), dtype=bool)
        baseline[:lost] = candidate[lost : lost + won] = True
        found = rule(candidate, baseline)
        said += [equivalent(ACCURACY, found.value, found.low, found.high, found.n)] * times
    return np.array(said)


def between(shares):
    low, high = (f"{share:.1%}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


@pytest.mark.promise(18)
@pytest.mark.parametrize("design", DESIGNS)
def test_promise_18_speeds_beyond_the_margin_are_not_called_equivalent(design, figure):
    slower = [said_of_speeds(design, run, BEYOND * SPEED_MARGIN) for run in RUNS]
    for said in slower:
        assert_at_most_five_per_cent(said)
    equal = [said_of_speeds(design, run, 0.0).mean() for run in RUNS]
    assert design != "in turns" or min(equal) > 0.8
    figure(
        f"{TRIALS:,} simulated pairs of each of {len(RUNS)} runs' noise, measured {design}, slower by the margin of "
        f"{SPEED_MARGIN:.0%}: {between([said.mean() for said in slower])} called equivalent; of equal ones "
        f"{between(equal)}"
    )


@pytest.mark.promise(18)
def test_promise_18_perplexities_beyond_the_margin_are_not_called_equivalent(figure):
    rows, texts, tokens = measured("nll"), max(40, TRIALS // 50), 16_384
    worse = [said_of_perplexities(row, texts, tokens, 1 + BEYOND * PERPLEXITY_MARGIN) for row in rows]
    assert_at_most_five_per_cent(worse)
    equal = [said_of_perplexities(row, texts // 4, tokens, 1.0).mean() for row in rows]
    assert max(equal) > 0.9
    figure(
        f"{np.size(worse):,} simulated texts of {tokens:,} tokens, with the changes of {len(rows)} measured rows moved "
        f"to the margin of {PERPLEXITY_MARGIN:.0%}: {np.mean(worse):.1%} called equivalent; moved to none "
        f"{between(equal)} by row"
    )


@pytest.mark.promise(18)
@pytest.mark.parametrize("items", [400, 5_000, 20_000])
def test_promise_18_accuracies_beyond_the_margin_are_not_called_equivalent(items, figure):
    rows = measured("flips").astype(int)
    worse = [said_of_accuracies(row, items, BEYOND * ACCURACY_MARGIN) for row in rows]
    for said in worse:
        assert_at_most_five_per_cent(said)
    equal = [said_of_accuracies(row, items, 0.0).mean() for row in rows]
    figure(
        f"{TRIALS:,} simulated sets of {items:,} answers for each of {len(rows)} rows' flips, lost by the margin of "
        f"{ACCURACY_MARGIN:.0%}: {between([said.mean() for said in worse])} called equivalent; of equal ones "
        f"{between(equal)}"
    )


def narrow_interval(candidate, baseline):
    """Agresti & Min 2005: with half a flip more each way, which is too few where hardly any answer flips."""
    n = candidate.size + 2
    lost, won = ((one & ~other).sum() + 0.5 for one, other in ((baseline, candidate), (candidate, baseline)))
    half = stats.norm.isf(ALPHA / 2) * np.sqrt(won + lost - (won - lost) ** 2 / n) / n
    return Estimate((won - lost) / n, (won - lost) / n - half, (won - lost) / n + half, n=n)


@pytest.mark.promise(18)
def test_promise_18_the_simulation_can_fail(figure):
    """It catches "no difference shown" taken for equivalence, and an interval that is too narrow for rare flips."""
    noisy = in_turns(np.random.default_rng(0), "aa", TRIALS, BEYOND * SPEED_MARGIN, rounds=5)
    not_shown = student(noisy)[0][:, 0] > ALPHA
    rare = said_of_accuracies((0, 1, 400), 400, BEYOND * ACCURACY_MARGIN, rule=narrow_interval)
    for said in (not_shown, rare):
        with pytest.raises(AssertionError):
            assert_at_most_five_per_cent(said)
    figure(
        f"the same with what is not shown to differ called equivalent: {not_shown.mean():.0%}, with a narrower "
        f"interval of rare flips: {rare.mean():.1%}"
    )
