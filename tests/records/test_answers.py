"""Three answers, held against tests made by hand and against what simulated truths deserve."""

import numpy as np
import pytest
from scipy import stats

from squeeze.core.errors import SqueezeError
from squeeze.records import answers as module
from squeeze.records.answers import ACCURACY, KL, PERPLEXITY, SPEED, Answer, Margins, amount, kind, sign
from squeeze.records.record import Estimate
from squeeze.records.statistics import ratio


def rounds(rng, effect, noise, count):
    """The estimate of a speed-up of ``effect`` (log) from rounds with ``noise``."""
    return ratio(np.exp(effect + noise * rng.standard_normal(count)), np.ones(count))


def test_each_answer_in_words():
    said = {
        "faster": Estimate(1.2, 1.1, 1.3, 0.001, 8),
        "slower": Estimate(0.8, 0.7, 0.9, 0.001, 8),
        "faster, yet within 5 %": Estimate(1.02, 1.01, 1.03, 0.001, 8),
        "equal within 5 %": Estimate(1.0, 0.98, 1.02, 0.9, 8),
        "undecided within ±30 %": Estimate(1.1, 0.9, 1.3, 0.2, 8),
        "? (3 rounds, 5 are needed)": Estimate(1.1, n=3),
    }
    assert [str(Answer.to(SPEED, estimate, Margins())) for estimate in said.values()] == list(said)
    assert str(Answer.to(ACCURACY, Estimate(-0.02, -0.1, 0.06, 0.5, 100), Margins())) == "undecided within ±10 points"
    assert str(Answer.to(PERPLEXITY, Estimate(1.02, 1.01, 1.03, 1e-3, 16), Margins())) == "worse"
    assert amount(KL, 0.0123) == "0.012 nats"


def test_below_one_the_margin_reaches_as_far_in_the_logarithm():
    narrow = Answer.to(SPEED, Estimate(0.96, 0.9599, 0.9601, 1e-9, 8), Margins())
    wide = Answer.to(SPEED, Estimate(0.951, 0.9509, 0.9511, 1e-9, 8), Margins())
    assert (str(narrow), str(wide)) == ("slower, yet within 5 %", "slower")
    assert Answer.to(SPEED, Estimate(0.9, 0.5, 1.6, 0.5, 8), Margins()).within == pytest.approx(1.0)  # half as fast


def test_equality_is_two_one_sided_tests():
    """The same decision as two t-tests, each at 5 %, against the margins."""
    rng = np.random.default_rng(0)
    found, expected = [], []
    for _ in range(300):
        logs = 0.02 * rng.standard_normal() + 0.05 * rng.standard_normal(8)
        answer = Answer.to(SPEED, ratio(np.exp(logs), np.ones(8)), Margins())
        found.append(bool(answer.within == 0.05 and answer.word != "undecided"))
        margin = np.log(1.05)
        above = stats.ttest_1samp(logs, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(logs, margin, alternative="less").pvalue
        expected.append(bool(max(above, below) < 0.05))
    assert found == expected
    assert 50 < sum(expected) < 250


def test_a_difference_as_large_as_the_margin_is_seldom_called_equal():
    rng = np.random.default_rng(1)
    answers = [Answer.to(SPEED, rounds(rng, np.log(1.05), 0.03, 8), Margins()).within == 0.05 for _ in range(1000)]
    assert stats.binomtest(sum(answers), len(answers), 0.05, alternative="greater").pvalue > 0.01


def test_what_is_detectable_is_found_in_80_per_cent_of_tries():
    rng = np.random.default_rng(2)
    effects = [Answer.to(SPEED, rounds(rng, 0.0, 0.05, 8), Margins()).detectable for _ in range(400)]
    effect = np.log1p(np.median(effects))
    shown = np.mean([rounds(rng, effect, 0.05, 8).p_value <= 0.05 for _ in range(1000)])
    assert 0.74 < shown < 0.86


def test_a_distance_is_held_against_its_margin_not_against_zero():
    said = {
        "equal within 0.01 nats": Estimate(0.002, 0.001, 0.004, n=16),
        "worse": Estimate(0.2, 0.1, 0.4, n=16),
        "undecided within ±0.04 nats": Estimate(0.02, 0.005, 0.04, n=16),
    }
    assert [str(Answer.to(KL, estimate, Margins())) for estimate in said.values()] == list(said)
    assert Answer.to(KL, Estimate(0.2), Margins()).word is None  # of before it had an interval


def test_signs_are_shapes():
    signs = [
        sign(*each) for each in (("faster", np.nan), ("worse", 0.01), ("equal", 0.05), ("undecided", 0.3), (None, 1))
    ]
    assert signs == ["▲", "▼=", "=", "~", ""]


def test_columns_have_their_kinds():
    names = ("decode_speedup_b8", "ttft_speedup", "perplexity_ood_delta", "acc_arc_easy_delta", "kl_divergence")
    kinds = (SPEED, SPEED, PERPLEXITY, ACCURACY, KL)
    assert [kind(name) for name in names] == list(kinds)
    assert kind("ttft_speedup_at_4096") is SPEED
    assert {kind(name) for name in ("ttft_ms_at_4096", "ttft_speedup_at_4096_low", "decode_speedup_at_32")} == {None}
    assert {kind(name) for name in ("decode_speedup_low", "acc_sciq", "perplexity", "bytes")} == {None}


def test_margins_are_read_by_name_and_say_what_they_are():
    assert Margins.of("") == Margins()
    assert Margins.of("speed=.1, kl=0.5") == Margins(speed=0.1, kl=0.5)
    assert Margins.of(str(Margins(accuracy=0.02))) == Margins(accuracy=0.02)


@pytest.mark.parametrize("text", ["sped=0.1", "speed", "speed=5%", "speed=-1", "speed=0", "=", "speed=nan"])
def test_a_margin_that_is_none_is_refused_with_those_that_are(text):
    with pytest.raises(SqueezeError, match="one of speed, perplexity, accuracy, kl, such as speed"):
        Margins.of(text)


def test_a_wider_margin_makes_equal_what_was_undecided():
    estimate = Estimate(1.0, 0.92, 1.09, 0.9, 8)
    assert str(Answer.to(SPEED, estimate, Margins())) == "undecided within ±9 %"
    assert str(Answer.to(SPEED, estimate, Margins(speed=0.1))) == "equal within 10 %"
    assert module.UNDECIDED == "undecided"
