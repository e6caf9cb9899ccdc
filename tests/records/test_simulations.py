"""What the statistics would say of equal and of unequal models: simulated false alarms and detections."""

import itertools
import os

import numpy as np
import pytest
from scipy import stats

from squeeze.records import estimates
from squeeze.records.ranking import ranking
from squeeze.records.statistics import ALPHA, holm, perplexity_delta, ratio, retained_accuracy, steady
from squeeze.runner.rounds import order
from tests.losses import board, token_losses

ROUNDS = 5
PROCESS_NOISE = 0.02
TRIALS = int(os.environ.get("SQUEEZE_TEST_TRIALS", "1000"))


def block_of_rounds(rng, slowdowns):
    """Rates of a baseline and of candidates (len(slowdowns)) measured side by side, (1 + candidates, ROUNDS).

    Each process has its own noise of 2 %; over the block the machine drifts by up to 10 % and wanders besides; the
    medians of tokens within a process add next to nothing. The order is the one in which squeeze measures.
    """
    members = 1 + len(slowdowns)
    moments = members * ROUNDS
    drift = rng.uniform(-0.1, 0.1) * np.linspace(0, 1, moments) + 0.003 * rng.standard_normal(moments).cumsum()
    slow = np.array([0.0, *slowdowns])
    seconds = np.empty((members, ROUNDS))
    places = itertools.count()
    for number in range(ROUNDS):
        for member in order(range(members), number):
            noise = PROCESS_NOISE * rng.standard_normal() + 0.001 * rng.standard_normal()
            seconds[member, number] = np.exp(drift[next(places)] + noise) * (1 + slow[member])
    return 1 / seconds


def called_different(candidates, slowdown, corrected=False):
    """Which of TRIALS blocks, whose ``candidates`` share a baseline, are called different: (TRIALS, candidates)."""
    rng = np.random.default_rng(20260101)
    called = []
    for _ in range(TRIALS):
        rates = block_of_rounds(rng, [slowdown] * candidates)
        p_values = np.array([ratio(own, rates[0]).p_value for own in rates[1:]])
        called.append((holm(p_values) if corrected else p_values) <= ALPHA)
    return np.array(called)


def assert_at_most_five_per_cent(alarms):
    """The rate may lie above 5 % by chance: what a true 5 % would exceed in one of 100 runs, fails."""
    alarms = np.asarray(alarms)
    assert stats.binomtest(int(alarms.sum()), alarms.size, ALPHA, alternative="greater").pvalue > 0.01, alarms.mean()


@pytest.mark.promise(5)
def test_promise_5_no_false_winners_in_pairs_of_equal_processes(figure):
    alarms = called_different(candidates=1, slowdown=0.0)
    assert_at_most_five_per_cent(alarms)
    figure(f"{TRIALS:,} simulated A/A pairs with process noise and drift: {alarms.mean():.1%} called different")


@pytest.mark.promise(5)
def test_promise_5_no_false_winners_in_blocks_that_share_a_baseline(figure):
    assert_at_most_five_per_cent(called_different(candidates=4, slowdown=0.0)[:, 0])
    sweeps = called_different(candidates=4, slowdown=0.0, corrected=True).any(axis=1)
    assert_at_most_five_per_cent(sweeps)
    figure(f"{TRIALS:,} simulated A/A sweeps that share a baseline: {sweeps.mean():.1%} show any difference (Holm)")


@pytest.mark.promise(5)
def test_promise_5_the_simulation_can_fail(figure):
    """Tests that take a process's tokens for independent, or rounds that are not balanced, are caught by it."""
    rng = np.random.default_rng(0)
    pooled, unbalanced = [], []
    for _ in range(200):
        tokens = np.exp(
            PROCESS_NOISE * rng.standard_normal((2, ROUNDS, 1)) + 0.005 * rng.standard_normal((2, ROUNDS, 20))
        )
        pooled.append(stats.ttest_ind(*np.log(tokens.reshape(2, -1))).pvalue <= ALPHA)
        drifting = np.exp(0.1 * np.linspace(0, 1, 2 * ROUNDS) + PROCESS_NOISE * rng.standard_normal(2 * ROUNDS))
        unbalanced.append(ratio(drifting[:ROUNDS], drifting[ROUNDS:]).p_value <= ALPHA)
    for alarms in (pooled, unbalanced):
        with pytest.raises(AssertionError):
            assert_at_most_five_per_cent(alarms)
    figure(
        f"the same with tokens taken for independent: {np.mean(pooled):.0%}, with all of one before all of the other: "
        f"{np.mean(unbalanced):.0%}"
    )


@pytest.mark.promise(6)
def test_promise_6_real_differences_are_found(figure):
    found = {slowdown: called_different(1, slowdown).mean() for slowdown in (0.02, 0.05, 0.10)}
    assert 0.10 < found[0.02] < found[0.05] < found[0.10]
    assert found[0.05] > 0.5
    assert found[0.10] >= 0.95
    curve = ", ".join(f"{slowdown:.0%} in {share:.1%}" for slowdown, share in found.items())
    figure(f"a slow-down planted in {TRIALS:,} simulated pairs of {ROUNDS} rounds is found: of {curve}")


def alarms_of_texts(tokens, block, texts, seed=1):
    """Which simulated texts call two models of equal perplexity different: by interval and by p-value, (2, texts)."""
    rng = np.random.default_rng(seed)
    called = []
    for _ in range(texts):
        estimate = perplexity_delta(*token_losses(rng, tokens), block=block, seed=0)
        called.append((not estimate.low <= 0 <= estimate.high, estimate.p_value <= ALPHA))
    return np.array(called).T


@pytest.mark.promise(5)
@pytest.mark.parametrize("tokens", [8_184, 32_736])
def test_equal_models_are_called_different_in_five_per_cent_of_texts(tokens, figure):
    """Both the interval and the p-value keep it; each trial is another text."""
    texts = max(300, TRIALS // 5)
    intervals, tests = alarms_of_texts(tokens, estimates.BLOCK, texts)
    assert_at_most_five_per_cent(intervals)
    assert_at_most_five_per_cent(tests)
    figure(
        f"equal perplexities on {tokens:,} tokens of {texts:,} texts drawn from published losses: {tests.mean():.1%} "
        f"called different with blocks of {estimates.BLOCK} tokens"
    )


@pytest.mark.promise(5)
def test_shorter_blocks_of_tokens_raise_false_alarms(figure):
    """What real losses do to blocks that are taken for independent and are not; the t-test alone, which is fast."""
    rng, texts = np.random.default_rng(2), max(2_000, TRIALS)
    own, other = zip(*(token_losses(rng, 32_736) for _ in range(texts)), strict=True)
    differences = np.stack(own) - np.stack(other)
    rates = {}
    for block in (64, 128, 512):
        whole = differences[:, : 32_736 // block * block].reshape(texts, -1, block).mean(axis=2)
        rates[block] = stats.ttest_1samp(whole, 0.0, axis=1).pvalue <= ALPHA
    assert_at_most_five_per_cent(rates[512])
    for block in (64, 128):
        with pytest.raises(AssertionError):
            assert_at_most_five_per_cent(rates[block])
    curve = ", ".join(f"{block} tokens {alarms.mean():.1%}" for block, alarms in rates.items())
    figure(f"equal perplexities on 32,736 tokens of {texts:,} such texts, called different with blocks of {curve}")


def test_retained_accuracy_is_a_bound_that_holds_in_95_per_cent_of_samples():
    rng = np.random.default_rng(0)
    truth = 0.97
    exceeded = []
    for _ in range(500):
        was_right = rng.random(5000) < 0.6
        flipped = rng.random(5000)
        # Of right answers 8 % are lost, of wrong ones just as many are won as make 97 % of 0.6.
        right = np.where(was_right, flipped >= 0.08, flipped < (truth - 0.92) * 0.6 / 0.4)
        exceeded.append(retained_accuracy(right, was_right) > truth)
    assert_at_most_five_per_cent(exceeded)
    assert np.mean(exceeded) > 0.02  # a bound that never errs is too cautious


@pytest.mark.promise(5)
def test_equal_rows_are_seldom_ranked_apart():
    rng = np.random.default_rng(0)
    assert_at_most_five_per_cent([(ranking(board(rng, 6, 0.0)).low > 1).any() for _ in range(300)])


@pytest.mark.promise(8)
@pytest.mark.parametrize(("count", "noise"), [(5, 0.02), (32, 0.04), (64, 0.05)])
def test_promise_8_mild_noise_passes_nearly_always(count, noise, figure):
    rng = np.random.default_rng(0)
    passed = np.mean([steady(1 + noise * rng.standard_normal(count)) for _ in range(500)])
    assert passed > 0.98
    figure(f"{count} times with {noise:.0%} noise: {passed:.1%} pass")


RESTLESS = {
    "a ramp of 25 %": np.linspace(1, 1.25, 32),
    "a spike": np.where(np.arange(32) == 20, 5.0, 1.0),
    "two modes": np.where(np.arange(32) % 2, 1.25, 1.0),
    "a staircase": 1 + 0.1 * (np.arange(32) // 8),
}


@pytest.mark.promise(8)
def test_promise_8_restless_times_are_told_nearly_always(figure):
    rng = np.random.default_rng(0)
    told = {
        name: np.mean([not steady(times * (1 + 0.02 * rng.standard_normal(times.size))) for _ in range(500)])
        for name, times in RESTLESS.items()
    }
    assert min(told.values()) > 0.98, told
    figure("flagged, of 500 simulated each: " + ", ".join(f"{name} {share:.1%}" for name, share in told.items()))
