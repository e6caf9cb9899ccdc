"""Timing is true, and warming up ends when times agree."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from squeeze.probes import latency


@pytest.mark.parametrize(("warmup", "expected"), [(2, 12 + 1 + 16), (1, 12 + 1 + 9)])
def test_positions_suffice_for_timing_and_for_warming_up(warmup: int, expected: int) -> None:
    assert latency.positions({"prompt_tokens": 12, "decode_tokens": 9, "warmup_rounds": warmup}) == expected


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
