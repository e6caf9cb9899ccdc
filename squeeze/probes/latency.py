"""Warm up until times settle, and tell how long a generation a protocol asks for."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

Clock = Callable[[], float]

MOST_WINDOWS = 8  # of warm-up calls; after that the process is flagged
AGREEMENT = 0.10  # two windows agree when their medians differ by less than this share


def turn_tokens(protocol: Mapping[str, Any]) -> int:
    """Return the tokens of a turn, which a protocol's `latency` part says; cells of older records do not."""
    return int(protocol.get("turn_tokens", 2))


def positions(protocol: Mapping[str, Any]) -> int:
    """Return the tokens of the longest generation, prompt included, that a protocol's `latency` part asks for."""
    decoded = max(protocol["decode_tokens"], MOST_WINDOWS * protocol["warmup_rounds"])
    return int(protocol["prompt_tokens"] + decoded)


def warm_up(call: Callable[[], object], window: int, clock: Clock = time.perf_counter) -> bool:
    """Repeat a call until its times agree over two windows of that many calls; return whether they came to."""
    times: list[float] = []
    while len(times) < MOST_WINDOWS * window:
        start = clock()
        call()
        times.append(clock() - start)
        if len(times) >= 2 * window and agree(times[-2 * window : -window], times[-window:]):
            return True
    return False


def agree(earlier: Sequence[float], later: Sequence[float]) -> bool:
    """Tell whether the medians of two windows differ by less than `AGREEMENT` of the smaller one."""
    low, high = sorted((median(earlier), median(later)))
    return high < low * (1 + AGREEMENT)
