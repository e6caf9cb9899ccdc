"""How near a row is to its baseline, from raw samples: figures by hand, intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from squeeze.records.fidelity import distances, fidelity, generations, noise_floor, pooled
from squeeze.records.record import Estimate
from squeeze.records.statistics import block_mean, token_blocks

TOKENS = 16 * 512


def correlated(rng: np.random.Generator, count: int, reach: int = 64) -> npt.NDArray[np.float64]:
    """A series whose neighbours are alike for ``reach`` tokens: a topic, say."""
    return np.convolve(rng.standard_normal(count + reach), np.ones(reach) / np.sqrt(reach), "valid")[:count]


def meant(values: npt.NDArray[np.float64]) -> Estimate:
    return block_mean(values, token_blocks(values.size))


def test_percentiles_and_mean_are_those_of_the_tokens() -> None:
    kl = np.random.default_rng(0).gamma(0.3, 0.1, TOKENS).astype(np.float32)
    found = distances({"kl": kl, "top1": kl < 0.1})
    for name, share in {"kl_median": 0.5, "kl_p90": 0.9, "kl_p99": 0.99}.items():
        assert found[name].value == pytest.approx(np.quantile(kl, share))
        assert found[name].n == TOKENS
    divergence, top1 = found["kl_divergence"], found["top1_agreement"]
    assert divergence.value == pytest.approx(kl.mean(dtype=np.float64))
    assert divergence.low is not None
    assert divergence.high is not None
    assert divergence.low < divergence.value < divergence.high
    assert (divergence.n, top1.n) == (16, 16)
    assert top1.value == pytest.approx((kl < 0.1).mean())


def test_sixteen_blocks_of_512_tokens_are_the_fewest_that_have_an_interval() -> None:
    """Eight windows of 1024 tokens, the first of each unscored, are sixteen to within a token."""
    values = np.random.default_rng(0).random(9000)
    assert meant(values[: 8 * 1023]).n == 16
    assert meant(values[: 8 * 1023]).low is not None
    few = meant(values[: 15 * 512])
    assert (few.n, few.low, few.high) == (15, None, None)
    assert few.value == pytest.approx(values[: 15 * 512].mean())


def test_intervals_of_correlated_tokens_hold_the_truth_as_often_as_they_say() -> None:
    """By single tokens the interval would be a seventh as wide, and miss in four of five texts."""
    rng, held, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        found = meant(correlated(rng, TOKENS))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / trials <= 0.98


def test_divergence_is_told_by_the_baselines_confidence() -> None:
    kl, confidence = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([0.2, 0.499, 0.5, 0.9, 1.0])
    found = distances({"kl": kl, "confidence": confidence})
    bands = {name: (found[f"kl_{name}"].value, found[f"kl_{name}"].n) for name in ("unsure", "likely", "confident")}
    assert bands == {"unsure": (1.5, 2), "likely": (4.0, 1), "confident": (12.0, 2)}
    assert "kl_unsure" not in distances({"kl": kl, "confidence": np.ones(5)})


def test_the_floor_is_the_baselines_distance_from_itself() -> None:
    """A candidate that has such arrays of its own (a baseline does) does not set its own floor."""
    own, baseline = np.full(50, 0.5), np.full(40, 0.001)
    arrays = {"kl": own, "top1": own > 1, "floor_kl": own, "floor_top1": own > 1}
    found = fidelity(arrays, {"floor_kl": baseline, "floor_top1": baseline < 1})
    assert (found["kl_floor"].value, found["kl_floor"].n) == (pytest.approx(0.001), 40)
    assert found["kl_floor_p99"].value == pytest.approx(0.001)
    assert found["top1_floor"].value == 1
    assert noise_floor({}) == {}
    assert "kl_floor" not in fidelity(arrays, {})


def test_divergent_tokens_are_counted_to_the_end() -> None:
    baseline = np.arange(20).reshape(2, 10)
    one = baseline.copy()
    one[0, 4:] += 100  # differs from the fifth token on
    one[0, 6] = baseline[0, 6]  # but for one, which is the same again
    found = generations({"generated": one}, {"generated": baseline})
    assert found["divergent_share"].value == pytest.approx(5 / 20)
    assert found["first_divergence"].value == pytest.approx((4 + 10) / 2)
    assert found["divergent_share"].n == found["first_divergence"].n == 2
    assert found["divergent_share"].low is None
    assert "divergent_floor" not in found


def test_sixteen_prompts_give_an_interval() -> None:
    rng = np.random.default_rng(0)
    own, other = rng.integers(2, size=(2, 16, 50))
    share = generations({"generated": own}, {"generated": other})["divergent_share"]
    assert share.low is not None
    assert share.high is not None
    assert share.low < 0.5 < share.high


def test_generations_are_compared_with_those_made_in_the_same_way() -> None:
    together = np.arange(80).reshape(8, 10)
    alone = together[:2] + (np.arange(10) >= 8)
    baseline = {"generated": together, "generated_alone": alone}
    found = generations({"generated_alone": alone}, baseline)
    assert found["divergent_share"].value == 0
    assert found["divergent_floor"].value == pytest.approx(0.2)
    assert generations({"generated": together}, baseline)["divergent_share"].n == 8
    assert generations({}, baseline) == {}


def test_repetition_is_the_share_of_fourgrams_that_were_there_before() -> None:
    loop, varied = np.tile([1, 2], 6), np.arange(12)
    found = generations({"generated": np.stack([loop, varied])}, {"generated": np.stack([varied, varied])})
    assert found["repetition"].value == pytest.approx((7 / 9 + 0) / 2)  # of nine 4-grams, two are new
    assert found["baseline_repetition"].value == 0


def test_pooled_answers_are_paired() -> None:
    """Agresti & Min's example of 1,600 voters: 150 changed one way, 86 the other; 0.04, interval 0.021 to 0.059."""
    right = np.repeat([True, True, False, False], [794, 150, 86, 570])
    after = np.repeat([True, False, True, False], [794, 150, 86, 570])
    parts = {"piqa_correct": slice(0, 600), "arc_correct": slice(600, 1600)}
    found = pooled(*({name: each[part] for name, part in parts.items()} for each in (after, right)))
    change = found["acc_pooled_delta"]
    assert found["acc_pooled"].value == pytest.approx(880 / 1600)
    assert change.value == pytest.approx(-0.04)
    assert (change.low, change.high) == (pytest.approx(-0.0587, abs=1e-4), pytest.approx(-0.0212, abs=1e-4))
    assert change.p_value is not None
    assert change.p_value < 1e-4
    assert change.n == 1600
    assert "retained_accuracy" not in found


def test_the_same_answers_still_leave_room_for_a_change() -> None:
    answers = {"sciq_correct": np.arange(100) % 3 > 0}
    change = pooled(answers, answers)["acc_pooled_delta"]
    assert (change.value, change.p_value) == (0.0, 1.0)
    assert change.high == -(change.low or 0.0) > 0.01


def test_a_share_that_is_kept_is_claimed_from_five_thousand_items_on() -> None:
    answers = {"sciq_correct": np.arange(2500) % 3 > 0, "piqa_correct": np.arange(2500) % 3 > 0}
    assert pooled(answers, answers)["retained_accuracy"].value == 1.0
    fewer = {name: each[:2499] for name, each in answers.items()}
    assert "retained_accuracy" not in pooled(fewer, fewer)
    assert pooled({"kl": np.ones(3)}, {}) == {}


def test_answers_to_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="items must be paired"):
        pooled({"sciq_correct": np.ones(4, bool)}, {"sciq_correct": np.ones(5, bool)})


def test_distances_of_classes_have_texts_as_units() -> None:
    kl = np.random.default_rng(0).gamma(0.3, 0.1, size=300).astype(np.float32)
    found = fidelity({"item_kl": kl, "item_top1": np.arange(300) % 10 > 0}, {})
    mean, agreement = found["kl_divergence"], found["top1_agreement"]
    assert mean.value == pytest.approx(kl.mean(dtype=np.float64))
    assert mean.n == agreement.n == 300
    half = stats.t.isf(0.025, 299) * kl.std(ddof=1, dtype=np.float64) / np.sqrt(300)
    assert (mean.low, mean.high) == pytest.approx((mean.value - half, mean.value + half))
    assert agreement.value == pytest.approx(0.9)
    assert found["kl_p90"].value == pytest.approx(np.quantile(kl, 0.9))
    assert fidelity({}, {}) == {}
