"""Timing is true, and warming up ends when times agree."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from squeeze.probes import latency
from squeeze.probes.latency import Prompts


@pytest.mark.parametrize(("warmup", "expected"), [(2, 12 + 1 + 16), (1, 12 + 1 + 9)])
def test_positions_suffice_for_timing_and_for_warming_up(warmup: int, expected: int) -> None:
    assert latency.positions({"prompt_tokens": 12, "decode_tokens": 9, "warmup_rounds": warmup}) == expected


LATENCY = {"prompt_tokens": 128, "prefill_repeats": 4, "batch_sizes": [1, 8]}
TEXT = torch.arange(latency.pool(LATENCY))


def drawn(round_number: int, seed: int = 0) -> dict[tuple[str, int, int], torch.Tensor]:
    prompts = Prompts(TEXT, LATENCY, seed, round_number)
    calls = [(use, batch, number) for use in ("prefill", "decode") for batch in (1, 8) for number in range(-16, 8)]
    return {call: prompts.draw(*call) for call in calls}


@pytest.mark.promise(19)
def test_no_prompt_is_read_twice_and_all_members_of_a_round_read_the_same(figure: Callable[[str], None]) -> None:
    rounds = [drawn(number) for number in range(8)]
    for each in rounds:
        texts = {tuple(prompt[0, :8].tolist()) for (_, batch, _), prompt in each.items() if batch == 1}
        assert len(texts) == len(each) / 2
    begun = [[int(prompt[0, 0]) for prompt in each.values()] for each in rounds]
    assert all(np.mean(np.equal(begun[0], other)) < 0.2 for other in begun[1:])
    again = drawn(3)
    assert all(torch.equal(again[call], prompt) for call, prompt in rounds[3].items())
    assert not all(torch.equal(prompt, rounds[3][call]) for call, prompt in drawn(3, seed=1).items())
    figure(f"{len(texts)} calls of a process read {len(texts)} different texts, other ones in each of 8 rounds")


def test_prompts_are_on_average_as_long_as_the_protocol_says_and_warming_up_has_both_lengths() -> None:
    away = set()
    for number in range(32):
        lengths = {call: prompt.shape[1] for call, prompt in drawn(number).items()}
        timed = [lengths["prefill", 1, at] for at in range(4)]
        assert np.mean(timed) == 128
        assert timed[0] != timed[1]
        assert {lengths["prefill", 1, -1], lengths["prefill", 1, -2]} == {*timed}
        assert lengths["prefill", 8, 0] == timed[0]
        away |= {length - 128 for length in timed}
    assert away == {-2, -1, 1, 2}
    assert latency.positions({**LATENCY, "decode_tokens": 64, "warmup_rounds": 1}) == 128 + 2 + 64


def test_an_encoder_is_given_no_more_than_it_takes() -> None:
    prompts = Prompts(TEXT, LATENCY, 0, 0, most=128)
    assert max(prompts.draw("encode", 1, number).shape[1] for number in (0, 1)) == 128
    assert prompts.nominal().shape == (8, 128)


def ticking(durations: list[float]) -> Callable[[], float]:
    """A clock under which the n-th timed call takes the n-th duration (the last one for ever)."""

    def readings() -> Iterator[float]:
        now, waiting = 0.0, iter(durations)
        while True:
            yield now
            now += next(waiting, durations[-1])
            yield now

    return readings().__next__


@pytest.mark.parametrize(
    ("durations", "calls", "warm"),
    [
        ([1.0], 4, True),
        ([5.0, 1.0, 1.0, 1.0, 1.0], 5, True),
        ([9.0, 8.0, 3.0, 2.0, 1.0, 1.0, 1.05, 1.0], 8, True),
        ([1.0, 1.0, 1.09, 1.09], 4, True),
        ([1.0, 1.0, 1.3, 1.3, 1.7, 1.7, 2.2, 2.2, 2.2, 2.2], 10, True),
        ([2.0**-n for n in range(40)], 16, False),
    ],
)
def test_warm_up_ends_when_two_windows_agree(durations: list[float], calls: int, warm: bool) -> None:
    done = []
    assert latency.warm_up(lambda: done.append(1), 2, ticking(durations)) is warm
    assert len(done) == calls


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@pytest.mark.promise(7)
@pytest.mark.timed
def test_a_known_spin_is_timed_within_1_percent(benchmark: BenchmarkFixture, figure: Callable[[str], None]) -> None:
    """Promise 7. The best of the rounds: a busy machine only ever adds."""
    benchmark.pedantic(spin, (0.05,), rounds=7)
    stats = benchmark.stats.stats
    assert 0.05 <= stats.min < 0.0505
    figure(f"a spin of 50 ms: {1000 * stats.min:.2f} ms at best, {1000 * stats.median:.2f} ms in the median of 7")


class VirtualClock:
    """Time that passes only when `work` says so."""

    now = 0.0

    @classmethod
    def read(cls) -> float:
        return cls.now

    @classmethod
    def work(cls, seconds: float) -> None:
        cls.now += seconds


@pytest.mark.promise(7)
@pytest.mark.timed
@pytest.mark.benchmark(timer=VirtualClock.read)
def test_on_a_virtual_clock_every_round_is_exact_and_kept(
    benchmark: BenchmarkFixture, figure: Callable[[str], None]
) -> None:
    """Promise 7. Setting up a round is no part of it."""
    durations = iter([0.25, 0.5, 0.125, 2.0])

    def setup() -> tuple[tuple[float], dict[str, Any]]:
        VirtualClock.work(100.0)
        return (next(durations),), {}

    benchmark.pedantic(VirtualClock.work, setup=setup, rounds=4)
    assert benchmark.stats.stats.data == [0.25, 0.5, 0.125, 2.0]
    figure("on a virtual clock: every time exact, and every time kept")


class Bursts:
    """A generation that gives as many tokens a call as it is told."""

    def __init__(self, *counts: int) -> None:
        self.counts, self.calls = counts, 0

    def decode(self) -> torch.Tensor:
        self.calls += 1
        return torch.zeros((2, self.counts[self.calls - 1]), dtype=torch.int64)


def test_tokens_are_asked_for_singly_and_share_the_time_of_their_call() -> None:
    pace = latency.Pace(Bursts(1, 3, 2, 4))  # type: ignore[arg-type]
    called = []
    for _ in range(8):
        pace.token()
        called.append(pace.generation.calls)
    assert called == [1, 2, 2, 2, 3, 3, 4, 4]
    assert pace.given == [1, 3, 2, 4]
    assert pace.begins(8) == [1, 1, 0, 0, 1, 0, 1, 0]
    seconds = [1.0, 5.8, 0.1, 0.1, 3.9, 0.1, 7.9, 0.1]  # a token that is there already takes no time to speak of
    assert pace.evenly(seconds) == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])  # of the last call, a half


def test_tokens_that_come_singly_keep_their_times() -> None:
    pace = latency.Pace(Bursts(1, 1, 1))  # type: ignore[arg-type]
    for _ in range(3):
        pace.token()
    assert (pace.begins(3), pace.evenly([0.3, 0.1, 0.2])) == ([1, 1, 1], [0.3, 0.1, 0.2])


def test_the_first_call_is_timed_and_no_other() -> None:
    moments, calls = iter([0.0, 60.0, 60.0, 61.0]), []
    first, call = latency.first_timed(lambda: calls.append(1), clock=lambda: next(moments))
    call()
    call()
    assert (first, len(calls)) == ([60.0], 2)
