import numpy as np
import pytest
from scipy import stats

from squeeze.records import statistics
from squeeze.records.statistics import (
    accuracy_change,
    block_means,
    holm,
    mcnemar,
    perplexity_delta,
    perplexity_ratio,
    ratio,
    retained_accuracy,
    steady,
    trend,
)
from tests.losses import token_losses

# Speed-ups


def test_a_ratio_is_the_geometric_mean_of_the_rounds_with_students_interval():
    estimate = ratio([2.0, 2.2, 1.8, 2.1, 1.9], [1.0, 1.0, 1.0, 1.0, 1.0])
    logs = np.log([2.0, 2.2, 1.8, 2.1, 1.9])
    reference = stats.ttest_1samp(logs, 0.0)
    interval = reference.confidence_interval(0.95)
    assert estimate.value == pytest.approx(np.exp(logs.mean()))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.exp(interval)))
    assert estimate.p_value == pytest.approx(reference.pvalue)
    assert estimate.n == 5


def test_swapping_candidate_and_baseline_inverts_the_ratio():
    one, other = [30.0, 31.0, 29.0, 30.5, 30.2], [20.0, 19.0, 21.0, 20.1, 20.3]
    forth, back = ratio(one, other), ratio(other, one)
    assert forth.value > 1
    assert (back.value, back.low, back.high) == pytest.approx((1 / forth.value, 1 / forth.high, 1 / forth.low))
    assert back.p_value == pytest.approx(forth.p_value)


def test_drift_that_both_share_cancels():
    drift = np.array([1.0, 1.1, 1.5, 1.2, 2.0])
    estimate = ratio(1.3 * drift, drift)
    assert estimate.value == pytest.approx(1.3)
    assert estimate.high - estimate.low < 1e-9


def test_fewer_than_five_rounds_support_no_verdict():
    estimate = ratio([2.0, 2.1, 1.9, 2.0], [1.0, 1.0, 1.0, 1.0])
    assert estimate.value == pytest.approx(2.0, rel=0.01)
    assert (estimate.low, estimate.high, estimate.p_value) == (None, None, None)


def test_a_model_against_itself_is_no_different():
    assert ratio([1.5] * 5, [1.5] * 5).p_value == 1.0


@pytest.mark.parametrize(
    ("candidate", "baseline", "words"),
    [
        ([1.0, 2.0], [1.0], "rounds must be paired"),
        ([], [], "rounds must be paired"),
        ([1.0, 0.0], [1.0, 1.0], "positive and finite"),
        ([1.0, float("nan")], [1.0, 1.0], "positive and finite"),
        ([1.0, -1.0], [1.0, 1.0], "positive and finite"),
    ],
)
def test_rounds_that_do_not_pair_are_refused(candidate, baseline, words):
    with pytest.raises(ValueError, match=words):
        ratio(candidate, baseline)


# Perplexity


def change(candidate, baseline, block=32, seed=0):
    return perplexity_delta(candidate, baseline, block, seed)


def test_the_change_of_perplexity_is_that_of_exp_mean_nll():
    candidate, baseline = token_losses(np.random.default_rng(0), 1000, 0.2)
    estimate = change(candidate, baseline, block=32, seed=0)
    assert estimate.value == pytest.approx(np.exp(candidate.mean()) - np.exp(baseline.mean()))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 31  # of 32 or 33 tokens: no block is a short rest
    assert estimate.p_value < 1e-6


def test_the_change_of_perplexity_is_seeded():
    candidate, baseline = token_losses(np.random.default_rng(0), 2048)
    assert change(candidate, baseline, seed=3) == change(candidate, baseline, seed=3)
    assert change(candidate, baseline, seed=3) != change(candidate, baseline, seed=4)


def test_resampling_in_pieces_changes_nothing(monkeypatch):
    candidate, baseline = token_losses(np.random.default_rng(0), 2048)
    whole = change(candidate, baseline)
    monkeypatch.setattr(statistics, "CHUNK", 5000)
    assert change(candidate, baseline) == whole


def test_pairing_makes_small_changes_visible():
    rng = np.random.default_rng(0)
    baseline = rng.gamma(1.0, 2.6, size=8192)
    candidate = baseline + 0.005 + 0.05 * rng.standard_normal(8192)
    paired = change(candidate, baseline)
    assert paired.low > 0
    assert change(rng.permutation(candidate), baseline).low < 0  # as if it were other text


def test_a_model_scored_twice_has_not_changed():
    nll = np.random.default_rng(0).gamma(1.0, 2.6, size=1024)
    estimate = change(nll, nll)
    assert (estimate.value, estimate.low, estimate.high, estimate.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_too_few_blocks_give_no_interval():
    estimate = change([1.0] * 100, [2.0] * 100, block=32)
    assert estimate.value == pytest.approx(np.exp(1) - np.exp(2))
    assert (estimate.low, estimate.p_value, estimate.n) == (None, None, 3)


def test_unpaired_or_infinite_losses_are_refused():
    with pytest.raises(ValueError, match=r"token NLLs must be paired: \(3,\) of the candidate, \(2,\) of the baseline"):
        change([1.0, 1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="found 1 that are not"):
        change([1.0, float("inf")], [1.0, 1.0])


def test_block_means_cover_all_tokens_in_order():
    nll = np.arange(1024.0)
    assert block_means(nll, 256) == (np.arange(256) * 4 + 1.5).tolist()
    assert [len(block_means(nll[:tokens], 256)) for tokens in (1000, 257, 256, 255)] == [256, 256, 256, 255]
    assert block_means([3.0, 5.0], 256) == [3.0, 5.0]
    assert block_means([], 256) == []


def test_a_ratio_of_perplexities_is_students_t_on_the_blocks():
    one, other = np.log(np.random.default_rng(0).gamma(16, 1.0, size=(2, 20)))
    estimate = perplexity_ratio(one, other)
    reference = stats.ttest_rel(one, other)
    interval = reference.confidence_interval(0.96)  # blocks depend on each other a little
    assert estimate.value == pytest.approx(np.exp(one.mean()) / np.exp(other.mean()))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.exp(interval)))
    assert (estimate.p_value, estimate.n) == (pytest.approx(1.25 * reference.pvalue), 20)
    assert perplexity_ratio(one[:16], other[:16]).p_value is not None
    assert perplexity_ratio(one, one[::-1]).p_value == 1.0  # and no more: the means are the same
    few = perplexity_ratio(one[:15], other[:15])
    assert (few.low, few.high, few.p_value, few.n) == (None, None, None, 15)


# Accuracy


def test_mcnemar_is_the_binomial_test_of_the_answers_that_flipped():
    candidate = [True] * 50 + [False] * 12 + [True] * 3 + [False] * 35
    baseline = [True] * 50 + [True] * 12 + [False] * 3 + [False] * 35
    flips = mcnemar(candidate, baseline)
    assert (flips["right_to_wrong"], flips["wrong_to_right"]) == (12, 3)
    assert flips["p_value"] == pytest.approx(stats.binomtest(12, 15, 0.5).pvalue)
    assert mcnemar(baseline, candidate)["right_to_wrong"] == 3
    assert mcnemar(baseline, baseline) == {"right_to_wrong": 0, "wrong_to_right": 0, "p_value": 1.0}
    with pytest.raises(ValueError, match="items must be paired"):
        mcnemar([True], [True, False])


def test_the_change_of_accuracy_has_an_interval_that_stays_open_where_nothing_changed():
    """Bonett and Price's interval by hand: one flip is added each way."""
    baseline = np.arange(100) < 70
    candidate = baseline.copy()
    candidate[:12], candidate[97:] = False, True
    found = accuracy_change(candidate, baseline)
    lost, won = 13 / 102, 4 / 102
    half = stats.norm.isf(0.025) * np.sqrt((lost + won - (won - lost) ** 2) / 102)
    assert (found.value, found.n) == (pytest.approx(-0.09), 100)
    assert (found.low, found.high) == (pytest.approx(won - lost - half), pytest.approx(won - lost + half))
    assert found.p_value == mcnemar(candidate, baseline)["p_value"]
    same = accuracy_change(baseline, baseline)
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert same.low == pytest.approx(-same.high)
    assert 0.02 < same.high < 0.03


def test_the_interval_of_a_change_of_accuracy_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        baseline, moves = rng.random(200) < 0.6, rng.random(200)
        candidate = np.where(baseline, moves >= 0.1, moves < 0.05)
        found = accuracy_change(candidate, baseline)
        covered.append(found.low <= 0.4 * 0.05 - 0.6 * 0.1 <= found.high)
    assert 0.935 < np.mean(covered) < 0.985


def test_retained_accuracy_needs_five_thousand_items():
    right = np.ones(4999, dtype=bool)
    assert retained_accuracy(right, right) is None
    assert retained_accuracy(np.ones(5000, dtype=bool), np.ones(5000, dtype=bool)) == 1.0
    assert retained_accuracy(np.zeros(5000, dtype=bool), np.ones(5000, dtype=bool)) is None


# Multiplicity


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([float("nan"), 0.02, 0.03]) == pytest.approx([float("nan"), 0.04, 0.04], nan_ok=True)
    assert holm([]).size == 0


# Steadiness


def noisy(values, spread=0.02):
    values = np.asarray(values, dtype=float)
    return values * (1 + spread * np.random.default_rng(0).standard_normal(values.size))


UNSTEADY = {
    "ramp": noisy(np.linspace(1, 1.25, 32)),
    "falling": noisy(np.linspace(1.5, 1, 32)),
    "spike": noisy(np.where(np.arange(32) == 20, 5.0, 1.0)),
    "bimodal": noisy(np.where(np.arange(32) % 2, 1.25, 1.0)),
    "staircase": noisy(1 + 0.1 * (np.arange(32) // 8)),
    "late step": noisy(np.where(np.arange(32) >= 26, 1.2, 1.0)),
    "very noisy": noisy(np.ones(32), 0.2),
    "short ramp": noisy([1.0, 1.1, 1.2, 1.3, 1.4]),
    "NaN": [1.0] * 16 + [float("nan")],
    "infinite": [1.0] * 16 + [float("inf")],
    "zero": [0.0] * 16,
    "negative": [-1.0] * 16,
    "four values": [1.0] * 4,
    "none": [],
}


@pytest.mark.promise(8)
@pytest.mark.parametrize("values", UNSTEADY.values(), ids=UNSTEADY)
def test_promise_8_unsteady_times_are_told(values):
    assert not steady(values)


@pytest.mark.promise(8)
@pytest.mark.parametrize("values", [[1.0] * 5, [0.03] * 64, noisy([1.0] * 5), noisy([1.0] * 32, 0.03)])
def test_promise_8_steady_times_pass(values):
    assert steady(values)


def test_a_trend_is_the_last_quarter_over_the_first():
    assert trend([2.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0]) == pytest.approx(-0.5)
    assert trend(np.linspace(1, 1.2, 32)) == pytest.approx(0.15, abs=0.01)
    assert trend([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 3.0]]) == pytest.approx(2.0)  # turns, one after the other
    assert trend(np.where(np.arange(32) == 31, 50.0, 1.0)) == 0.0  # one spike is none
    assert trend([1.0, 5.0, 9.0]) == 0.0
