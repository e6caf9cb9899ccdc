"""The ratio of a round is that of turns side by side: what slows both for a while does not move it."""

from __future__ import annotations

import numpy as np
import pytest

from squeeze.records.turns import (
    TIMINGS,
    array_of,
    contention,
    how_timed,
    processes,
    round_ratio,
    round_ratios,
    seconds_each,
    timed,
    turn_ratio,
)

RNG = np.random.default_rng(0)
SLOW_SPELLS = np.repeat(RNG.choice([1.0, 1.35, 1.65], size=16), 4)  # of the machine, as long as a turn


def test_what_slows_both_in_a_turn_cancels() -> None:
    assert turn_ratio(0.012 * SLOW_SPELLS, 0.010 * SLOW_SPELLS, 16) == pytest.approx(1.2)


def test_one_turn_that_was_disturbed_moves_nothing() -> None:
    own, other = np.full(64, 0.012), np.full(64, 0.010)
    own[8:12] *= 50
    other[40:44] *= 50
    assert turn_ratio(own, other, 16) == pytest.approx(1.2)


def test_a_last_turn_may_be_shorter() -> None:
    own = np.array([3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0])
    assert turn_ratio(own, np.ones(7), 3) == pytest.approx(3.0)  # turns of 3, 3 and 1 calls


@pytest.mark.parametrize(
    ("own", "other", "turns"),
    [
        ([1.0, 2.0], [1.0], 1),
        ([], [], 1),
        ([1.0], [1.0], 2),
        ([1.0], [1.0], 0),
        ([0.0], [1.0], 1),
        ([1.0], [np.nan], 1),
    ],
)
def test_what_is_not_paired_or_no_time_is_refused(own: list[float], other: list[float], turns: int) -> None:
    with pytest.raises(ValueError, match=r"paired|positive"):
        turn_ratio(own, other, turns)


def process(times: list[float], *, interleaved: bool) -> dict[str, object]:
    turns = {"token_s/1": [[0.0, 0.0, 0.0]] * 2}
    return {"token_s": {"1": times}, "interleaved": interleaved, "turns": turns}


def test_by_turns_only_where_both_were_interleaved() -> None:
    own, other = [2.0, 2.0, 8.0, 8.0, 8.0], [1.0, 1.0, 1.0, 8.0, 8.0]
    paired = round_ratio(process(own, interleaved=True), process(other, interleaved=True), "token_s", "1")
    assert paired == pytest.approx(2**0.5)  # turns of 3 and 2 calls: 2 / 1 and 8 / 8
    for interleaved in (True, False):
        one = process(own, interleaved=interleaved)
        assert round_ratio(one, process(other, interleaved=False), "token_s", "1") == 8.0


def test_tokens_that_come_several_at_a_time_count_by_their_mean() -> None:
    """Two calls of a second, of one token and of five: a third of a second each, and not the median's fifth."""
    drafted = {**process([1.0, 0.2, 0.2, 0.2, 0.2, 0.2], interleaved=True), "calls": {"1": [1, 1, 0, 0, 0, 0]}}
    assert seconds_each(drafted, "token_s", "1") == pytest.approx(1 / 3)
    assert seconds_each(process([1.0, 0.2, 0.2], interleaved=True), "token_s", "1") == 0.2
    plain = process([0.5, 0.5, 0.5, 0.5, 9.0, 0.5], interleaved=True)  # a call of its second turn was disturbed
    assert round_ratio(drafted, plain, "token_s", "1") == pytest.approx(2 / 3)
    assert round_ratio(plain, drafted, "token_s", "1") == pytest.approx(3 / 2)
    slowed = process([0.5, 0.5, 0.5, 1.0, 1.0, 1.0], interleaved=True)  # and here all of the second turn was
    assert round_ratio(drafted, slowed, "token_s", "1") == pytest.approx((1 / 3) / 0.75)
    alone = process([0.5, 0.5, 9.0, 0.5, 0.5, 0.5], interleaved=False)
    assert round_ratio(drafted, alone, "token_s", "1") == pytest.approx(2 / 3)


def test_arrays_are_called_by_what_was_timed_and_at_which_point() -> None:
    assert [array_of(kind, "8") for kind in TIMINGS] == ["ttft_s_b8", "token_s_b8", "encode_s_b8", "prompt_s_t8"]
    assert [timed(array_of(kind, "8")) for kind in TIMINGS] == [(kind, "8") for kind in TIMINGS]
    for other in (
        "turns_token_s_b1",
        "baseline_token_s_b1",
        "token_s_b0",
        "prompt_s_b1",
        "token_nll",
        "gaps_prompt_s_b1",
    ):
        assert timed(other) is None


def test_processes_come_back_from_their_arrays() -> None:
    """Prompts of each length are paired by turns, as batches are."""
    own, other = np.array([[2.0, 4.0], [3.0, 3.0]]), np.array([[1.0, 1.0], [1.0, 9.0]])
    both = {"prompt_s_t512": own, "token_s_b8": 2 * own, "turns_prompt_s_t512": np.zeros((2, 2, 3))}
    arrays = {**both, "interleaved": np.ones(2, bool), "baseline_interleaved": np.ones(2, bool)}
    arrays["calls_b8"] = np.array([[True, False], [True, True]])
    arrays |= {"baseline_prompt_s_t512": other, "baseline_turns_prompt_s_t512": np.zeros((2, 2, 3))}
    first, second = processes(arrays)
    assert (first["prompt_s"], second["token_s"]) == ({"512": [2.0, 4.0]}, {"8": [6.0, 6.0]})
    assert [len(values["turns"]["prompt_s/512"]) for values in (first, second)] == [2, 2]
    assert (first["calls"], second["calls"]) == ({"8": [True, False]}, {"8": [True, True]})
    assert processes(arrays, "baseline_")[0]["calls"] == {}
    assert processes(arrays, "baseline_")[1]["prompt_s"] == {"512": [1.0, 9.0]}
    assert round_ratios(arrays, "prompt_s", "512") == pytest.approx([8**0.5, 1.0])  # 2 and 4; 3 and 1/3


def test_contention_is_the_share_of_time_in_which_some_task_waited() -> None:
    def stalled(*moments: tuple[float, float]) -> dict[str, object]:
        return {"turns": {"token_s/1": [[at, 0.0, waited] for at, waited in moments]}}

    assert contention(
        [stalled((10.0, 5.0), (11.0, 5.1), (12.0, 5.4)), stalled((0.0, 0.0), (1.0, 0.0))]
    ) == pytest.approx(0.1)
    hand_overs = [(0.05 * turn, 0.012 * turn) for turn in range(10)]  # of a model that decodes in 3 ms, all alone
    assert contention([stalled(*hand_overs)]) == 0.0
    assert np.isnan(contention([stalled((1.0, 0.0))]))
    assert np.isnan(contention([stalled((1.0, np.nan), (2.0, np.nan))]))


def test_a_record_says_how_it_was_timed() -> None:
    beside, alone = (process([1.0], interleaved=flag) for flag in (True, False))
    assert how_timed([beside, beside], [beside, beside]) == "interleaved"
    assert how_timed([beside, beside], [beside, alone]) == "partly interleaved"
    assert how_timed([alone, beside], [beside, alone]) == "sequential"
