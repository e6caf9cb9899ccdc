"""Of the gaps of decoded tokens, the worst few in a row count; of first tokens, those of the rounds."""

import pytest

from squeeze.records.decoded import COARSE, ROUNDED, RUN, allowed, worst


def rounds(*gaps, step="token_s/1"):
    return [{"gaps": {step: [list(each)]}} for each in gaps]


def test_the_worst_run_of_any_round_counts():
    quiet, looped = [0.0] * 64, [0.0] * 20 + [2.0] * RUN + [0.0] * 36
    assert worst(rounds(quiet, looped, quiet)) == pytest.approx(2.0)


def test_one_near_tie_weighs_little():
    assert worst(rounds([0.0] * 10 + [0.4] + [0.0] * 20)) == pytest.approx(0.4 / RUN)


def test_first_tokens_are_one_a_round_and_count_together():
    for step in ("ttft_s/1", "prompt_s/1"):
        wrong = rounds(*([[1.0]] * RUN), step=step)
        assert worst(wrong) == pytest.approx(1.0)
        assert worst(wrong[:2]) == pytest.approx(2 / RUN)
    assert worst(rounds(*([[1.0]] * RUN), step="token_s/1")) == pytest.approx(1 / RUN)


def test_what_decodes_nothing_has_none():
    assert worst([{}, {}]) is None


def test_what_depends_on_its_call_may_differ_more():
    assert (allowed(coarse=False), allowed(coarse=True)) == (ROUNDED, COARSE)
    assert ROUNDED < COARSE


def test_a_ruined_model_may_round_more_but_not_without_bound():
    assert allowed(coarse=False, worse=10) == pytest.approx(10 * ROUNDED)
    assert allowed(coarse=False, worse=1e6) == allowed(coarse=False, worse=float("inf")) == COARSE
    assert allowed(coarse=False, worse=0.5) == allowed(coarse=False, worse=float("nan")) == ROUNDED
