"""Rounds that had nothing in common are compared by Welch's t, as scipy computes it, however many there are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from squeeze.records.welch import ratio_apart

ONE, OTHER = [2.0, 2.2, 1.8, 2.1, 1.9], [1.0, 1.3, 0.9, 1.1, 1.0, 1.2, 0.8]


def test_it_is_welchs_t_on_the_logs() -> None:
    found, reference = ratio_apart(ONE, OTHER), stats.ttest_ind(np.log(ONE), np.log(OTHER), equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert found.value == pytest.approx(np.exp(np.log(ONE).mean() - np.log(OTHER).mean()))
    assert (found.low, found.high) == pytest.approx((np.exp(interval.low), np.exp(interval.high)))
    assert found.p_value == pytest.approx(reference.pvalue)
    assert found.n == 5


def test_swapping_both_inverts_the_ratio() -> None:
    forth, back = ratio_apart(ONE, OTHER), ratio_apart(OTHER, ONE)
    assert (back.value, back.low, back.high) == pytest.approx((1 / forth.value, 1 / forth.high, 1 / forth.low))


def test_too_few_rounds_on_one_side_support_no_verdict() -> None:
    found = ratio_apart(ONE, OTHER[:4])
    assert (found.low, found.high, found.p_value, found.n) == (None, None, None, 4)


@pytest.mark.parametrize(("times", "p_value"), [(1.0, 1.0), (1.5, 0.0)])
def test_rounds_that_are_all_the_same_leave_no_doubt(times: float, p_value: float) -> None:
    found = ratio_apart([times] * 5, [1.0] * 6)
    assert (found.value, found.low, found.high) == pytest.approx((times, times, times))
    assert found.p_value == pytest.approx(p_value, abs=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="rates must be positive and finite"):
        ratio_apart([*ONE, bad], OTHER)
