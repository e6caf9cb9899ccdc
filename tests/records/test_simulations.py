"""What the rules would say of equal and of unequal models: false alarms and detections under measured noise."""

import os

import numpy as np
import pytest
from scipy import stats

from squeeze.core.paths import conf
from squeeze.records.ranking import ranking
from squeeze.records.statistics import (
    ALPHA,
    BLOCK_ALPHA,
    TOKEN_BLOCK,
    holm,
    perplexity_delta,
    ratio,
    retained_accuracy,
    steady,
)
from squeeze.request.plain_yaml import read_plain
from tests.interleaving import NOMINAL, ROUNDS, TREND, TURN, TURNS, settled, trend, turn_ratio
from tests.losses import board, token_losses
from tests.noise import (
    RUNS,
    corrected,
    extended,
    in_turns,
    measured,
    one_after_the_other,
    process_noise,
    student,
    traces,
)

TRIALS = int(os.environ.get("SQUEEZE_TEST_TRIALS", "1000"))
SMOKE = read_plain(conf() / "protocol" / "smoke.yaml")
DESIGNS = {"in turns": in_turns, "one after the other": one_after_the_other}
PESSIMISTIC = 0.05  # deviation of what a process keeps: thrice what live A/A ratios had in all
SLOWDOWNS = (0.02, 0.05, 0.10, 0.20)


def assert_at_most_five_per_cent(alarms):
    """The rate may lie above 5 % by chance: what a true 5 % would exceed in one of 100 runs, fails."""
    alarms = np.asarray(alarms)
    assert stats.binomtest(int(alarms.sum()), alarms.size, ALPHA, alternative="greater").pvalue > 0.01, alarms.mean()


def simulated(design, run, slowdown=0.0, trials=TRIALS, **more):
    return DESIGNS[design](np.random.default_rng(20260101), run, trials, slowdown, **more)


def fixed(logs):
    """The p-values of the shortest protocol, without extension."""
    return student(logs[..., : ROUNDS[0]])[0]


def between(shares):
    low, high = (f"{share:.1%}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


@pytest.mark.parametrize("run", RUNS)
def test_the_committed_noise_is_what_was_measured(run):
    assert measured(run).shape[1:] == (5, 32)
    assert 0.04 < process_noise(run).std() < 0.25
    assert abs(process_noise(run).mean()) < 0.001


def test_what_is_simulated_in_bulk_is_what_the_rules_say():
    """Turn ratios, intervals, extension and Holm's correction of whole arrays agree with the functions for one row."""
    rng = np.random.default_rng(0)
    for logs in 0.08 * rng.standard_normal((50, 1, ROUNDS[-1])):
        for rounds in ROUNDS:
            estimate = ratio(np.exp(logs[0, :rounds]), np.ones(rounds))
            if settled(rounds, SMOKE, estimate):
                break
        [[p_value]], [[half]], [[count]] = extended(logs[None])
        assert (count, p_value) == (rounds, pytest.approx(estimate.p_value, rel=1e-6))
        assert np.exp(2 * half) == pytest.approx(estimate.high / estimate.low)
    p_values = rng.random((20, 12)) ** 3
    assert corrected(p_values) == pytest.approx(np.stack([holm(row) for row in p_values]))


def test_what_is_simulated_is_what_the_smoke_protocol_asks():
    latency = SMOKE["latency"]
    assert (SMOKE["rounds"], SMOKE["most_rounds"]) == (ROUNDS[0], ROUNDS[-1])
    assert (latency["turn_tokens"], latency["decode_tokens"]) == (TURN, TURN * TURNS)


def test_turns_cancel_a_drift_and_keep_a_slow_down():
    """Of two members that take turns while all slows down by a third, one is slower by 7 %: A B B A A B B A ..."""
    seconds = np.linspace(1, 1.33, 64).reshape(16, 4)
    first = seconds[[0, 3, 4, 7, 8, 11, 12, 15]].ravel()
    second = seconds[[1, 2, 5, 6, 9, 10, 13, 14]].ravel()
    assert turn_ratio(1.07 * second, first, turns=8) == pytest.approx(1.07, abs=0.002)
    assert turn_ratio(1.07 * seconds[8:].ravel(), seconds[:8].ravel(), turns=8) > 1.15


@pytest.mark.promise(5)
@pytest.mark.parametrize("design", DESIGNS)
def test_promise_5_no_false_winners_in_pairs_of_equal_processes(design, figure):
    """After a fixed number of rounds, and by the rule that adds rounds while an interval is wide."""
    logs = {run: simulated(design, run) for run in RUNS}
    short, longer = ({run: rule(logs[run]) <= ALPHA for run in RUNS} for rule in (fixed, lambda one: extended(one)[0]))
    for run in RUNS:
        assert_at_most_five_per_cent(short[run])
        assert_at_most_five_per_cent(longer[run])
    counts = np.mean([extended(logs[run])[2].mean() for run in RUNS])
    figure(
        f"{TRIALS:,} simulated A/A pairs of each of {len(RUNS)} runs' noise, measured {design}: "
        f"{between([alarms.mean() for alarms in short.values()])} called different after {ROUNDS[0]} rounds, "
        f"{between([alarms.mean() for alarms in longer.values()])} with extension to {ROUNDS[-1]} ({counts:.1f} taken)"
    )


@pytest.mark.promise(5)
@pytest.mark.parametrize("design", DESIGNS)
def test_promise_5_no_false_winners_in_sweeps_of_blocks_that_share_a_baseline(design, figure):
    sweeps = []
    for run in RUNS:
        blocks = extended(simulated(design, run, trials=3 * (TRIALS // 3), candidates=4))[0]
        sweeps.append((corrected(blocks.reshape(-1, 12)) <= ALPHA).any(axis=1))
        assert_at_most_five_per_cent(sweeps[-1])
    figure(
        f"{len(sweeps[0]):,} simulated A/A sweeps of 12 rows, measured {design}: "
        f"{between([alarms.mean() for alarms in sweeps])} show any difference (Holm)"
    )


@pytest.mark.promise(5)
def test_promise_5_extension_costs_less_than_a_percentage_point_under_any_noise(figure):
    """Stopping early because an interval came out narrow flatters it: most where noise puts it at the limit."""
    rng = np.random.default_rng(20260101)
    noises = np.array([0.03, 0.06, 0.07, 0.08, 0.09, 0.10, 0.12, 0.16])
    p_values = [extended(noise * rng.standard_normal((10 * TRIALS, 1, ROUNDS[-1])))[0] for noise in noises]
    for each in p_values:
        assert_at_most_five_per_cent(each * ALPHA / NOMINAL <= ALPHA)
    worst = max((each <= ALPHA).mean() for each in p_values)
    assert worst < 0.065
    kept = max((each <= NOMINAL).mean() for each in p_values)
    figure(
        f"extension at the worst of normal noises ({noises[0]:.0%} to {noises[-1]:.0%} a round): {worst:.1%} "
        f"called different at p <= {ALPHA:.0%}, {kept:.1%} at p <= {NOMINAL:.1%}"
    )


@pytest.mark.promise(5)
def test_promise_5_the_simulation_can_fail(figure):
    """It catches tokens taken for independent, rounds that are not balanced, and ending at the first p below 5 %."""
    rng = np.random.default_rng(0)
    logs, trials = traces("aa"), 300
    tokens = logs[rng.integers(len(logs), size=(trials, 2, 5))].reshape(trials, 2, -1)
    pooled = stats.ttest_ind(tokens[:, 0], tokens[:, 1], axis=1).pvalue <= ALPHA
    level = rng.choice(process_noise("smoke"), size=(trials, 2, ROUNDS[0]))
    drifting = level + np.linspace(0, 0.3, 2 * ROUNDS[0]).reshape(2, -1)
    unbalanced = student(drifting[:, 0] - drifting[:, 1])[0] <= ALPHA
    pairs = simulated("one after the other", "aa", trials=2 * TRIALS)[:, 0]
    peeking = np.any([student(pairs[:, :rounds])[0] <= ALPHA for rounds in range(4, 13, 2)], axis=0)
    for alarms in (pooled, unbalanced, peeking):
        with pytest.raises(AssertionError):
            assert_at_most_five_per_cent(alarms)
    figure(
        f"the same with tokens taken for independent: {pooled.mean():.0%}, with all of one before all of the other: "
        f"{unbalanced.mean():.0%}, with rounds added until p is below 5 %: {peeking.mean():.0%}"
    )


@pytest.mark.promise(6)
@pytest.mark.parametrize("design", DESIGNS)
def test_promise_6_real_differences_are_found(design, figure):
    found = {
        slowdown: [(extended(simulated(design, run, slowdown))[0] <= ALPHA).mean() for run in RUNS]
        for slowdown in SLOWDOWNS
    }
    assert (np.diff(list(found.values()), axis=0) >= 0).all()
    if design == "in turns":
        assert min(found[0.10]) >= 0.95
        assert min(found[0.20]) >= 0.99
    curve = ", ".join(f"{slowdown:.0%} in {between(shares)}" for slowdown, shares in found.items())
    figure(f"a slow-down in {TRIALS:,} simulated pairs of each run's noise, measured {design}, is found: {curve}")


@pytest.mark.promise(6)
def test_promise_6_real_differences_are_found_though_processes_differ(figure):
    shares = [(extended(simulated("in turns", run, 0.10, own=PESSIMISTIC))[0] <= ALPHA).mean() for run in RUNS]
    assert min(shares) >= 0.90
    figure(f"of 10% in turns, if each process kept {PESSIMISTIC:.0%} of its own: {between(shares)}")


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
    texts = TRIALS if tokens < 10_000 else max(300, TRIALS // 5)
    intervals, tests = alarms_of_texts(tokens, TOKEN_BLOCK, texts)
    assert_at_most_five_per_cent(intervals)
    assert_at_most_five_per_cent(tests)
    figure(
        f"equal perplexities on {tokens:,} tokens of {texts:,} texts drawn from published losses: {tests.mean():.1%} "
        f"called different with blocks of {TOKEN_BLOCK} tokens"
    )


@pytest.mark.promise(5)
def test_shorter_blocks_of_tokens_raise_false_alarms(figure):
    """What real losses do to blocks that are taken for independent and are not; the t-test alone, which is fast."""
    rng, texts = np.random.default_rng(2), max(5_000, TRIALS)
    differences = np.stack([np.subtract(*token_losses(rng, 32_736)).astype(np.float32) for _ in range(texts)])
    rates = {}
    for block in (64, 128, 512):
        whole = differences[:, : 32_736 // block * block].reshape(texts, -1, block).mean(axis=2)
        rates[block] = stats.ttest_1samp(whole, 0.0, axis=1).pvalue <= BLOCK_ALPHA
    assert_at_most_five_per_cent(rates[512])
    for block in (64, 128):
        with pytest.raises(AssertionError):
            assert_at_most_five_per_cent(rates[block])
    curve = ", ".join(f"{block} tokens {alarms.mean():.1%}" for block, alarms in rates.items())
    curve += f" at p <= {BLOCK_ALPHA}"
    figure(f"equal perplexities on 32,736 tokens of {texts:,} such texts, called different with blocks of {curve}")


@pytest.mark.parametrize(("items", "accuracy"), [(5000, 0.6), (872, 0.88), (500, 0.88)])
def test_retained_accuracy_is_a_bound_that_holds_in_95_per_cent_of_samples(items, accuracy):
    rng = np.random.default_rng(0)
    truth = 0.97
    exceeded = []
    for _ in range(500):
        was_right = rng.random(items) < accuracy
        flipped = rng.random(items)
        # Of right answers 8 % are lost, of wrong ones just as many are won as make 97 % of the accuracy.
        right = np.where(was_right, flipped >= 0.08, flipped < (truth - 0.92) * accuracy / (1 - accuracy))
        exceeded.append(retained_accuracy(right, was_right, items) > truth)
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


@pytest.mark.promise(8)
def test_promise_8_measured_noise_is_told_and_only_a_warm_up_takes_the_verdict(figure):
    """Plateaus of a shared machine are no reason to say nothing; a warm-up that all processes share is one."""
    rng = np.random.default_rng(0)
    processes = np.concatenate([measured(run).reshape(-1, 32) for run in RUNS])
    restless = np.mean([not steady(times) for times in processes])
    vetoed = [trend(member) for run in RUNS for member in measured(run)]
    assert 0.1 < restless < 0.6
    assert np.mean(vetoed) < 0.02
    told = {}
    for ramp in (0.5, 1.0, 2.0):
        slowing = np.linspace(1 + ramp, 1, 32)
        told[ramp] = np.mean([trend(rng.choice(processes, ROUNDS[0]) * slowing) for _ in range(500)])
    assert told[0.5] < told[1.0] < told[2.0]
    assert told[2.0] > 0.95
    figure(
        f"of {len(processes)} measured processes {restless:.0%} are unsteady, which is said; of {len(vetoed)} members "
        f"{sum(vetoed)} drift the same way by {TREND:.0%} in every process, which takes the verdict; so would a "
        f"warm-up from {' / '.join(f'{1 + ramp:.1f}' for ramp in told)} times the settled time, in "
        f"{' / '.join(f'{share:.0%}' for share in told.values())} of rows"
    )
