"""Warm up until times settle, tell how long a generation a protocol asks for, and draw what is read in each call.

No prompt is read twice: who remembers what it was asked gains nothing by it. In the same call of the same round all
members read the same one, so that what is compared is equal work.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from squeeze.runtimes.contract import Generation

Clock = Callable[[], float]

MOST_WINDOWS = 8  # of warm-up calls; after that the process is flagged
AGREEMENT = 0.10  # two windows agree when their medians differ by less than this share
JITTER = 0.02  # of a protocol's prompt tokens, by which a prompt is longer or shorter at most
POOL = 4096  # tokens of text, at least, in which prompts begin
STRETCHES = 32  # of that text: more than a process makes calls of a kind


@dataclass(frozen=True)
class Prompts:
    """Draw the prompts of one process.

    text: (n,) int64, in which they begin. latency: that part of the protocol. seed: the protocol's. round: the
    process's. most: tokens that an encoder takes at once; a generation says for itself how many it needs.
    """

    text: Tensor
    latency: Mapping[str, Any]
    seed: int
    round: int
    most: int | None = None

    def draw(self, use: str, batch: int, number: int) -> Tensor:
        """Return the prompt of call ``number``, (batch, tokens) int64; calls below 0 warm up.

        Even numbers have one length and odd ones another, as much below the protocol's as that lies above it, or the
        other way round: their mean is the protocol's. (Two lengths and no more, for libraries compile their products
        for each: warming up has had both, and what is timed compiles nothing.)
        """
        length = self._length(use, number)
        chance, pairs = self.chance(use, batch, number), (len(self.text) - length + 1) // (2 * STRETCHES)
        # Neighbouring calls begin in stretches of their own, those of decoding at odd places: no two read the same.
        begin = number % STRETCHES * pairs
        starts = [2 * (begin + chance.randrange(pairs)) + (use == "decode") for _ in range(batch)]
        return torch.stack([self.text[start : start + length] for start in starts])

    def nominal(self) -> Tensor:
        """Return consecutive text of exactly the protocol's length, (largest batch size, prompt tokens) int64."""
        rows, length = max(self.latency["batch_sizes"]), self.latency["prompt_tokens"]
        return self.text[: rows * length].view(rows, length)

    def chance(self, *of: object) -> random.Random:
        """Return what is random in this round, the same for every member."""
        return random.Random(repr((self.seed, self.round, *of)))

    def _length(self, use: str, number: int) -> int:
        away = self.chance(use).choice((-1, 1)) * self.chance(use, "length").randint(1, spread(self.latency))
        length = int(self.latency["prompt_tokens"]) + (-away if number % 2 else away)
        return max(1, min(length, self.most or length))


@dataclass
class Pace:
    """Ask a generation for its tokens one at a time, however many each of its calls gives.

    So all members of a round say as much text in as many turns, and what is compared is equal work. given: tokens that
    each call gave. left: of the last call's, those that nobody has asked for yet.
    """

    generation: Generation
    given: list[int] = field(default_factory=list)
    left: int = 0

    def token(self) -> None:
        """Let the next token of each row be there: by a call, unless the last one gave it already."""
        if not self.left:
            self.left = self.generation.decode().shape[1]
            self.given.append(self.left)
        self.left -= 1

    def begins(self, tokens: int) -> list[int]:
        """Return, of each of the first so many tokens, 1 where a call began with it and 0 where one had given it."""
        return [int(at == 0) for count in self.given for at in range(count)][:tokens]

    def evenly(self, seconds: Sequence[float]) -> list[float]:
        """Return the seconds of each token: an even share of those of its call.

        seconds: of each ``token``, as they were timed: a call's stand with its first token. Of the last call, the
        shares of tokens that nobody asked for are left out, so that the sum is what these tokens took.
        """
        found: list[float] = []
        for count in self.given:
            taken = seconds[len(found) : len(found) + count]
            found += [sum(taken) / count] * len(taken)
        return found


def pool(protocol: Mapping[str, Any]) -> int:
    """Return how many tokens of text a protocol's `latency` part needs to draw prompts from."""
    longest = int(protocol["prompt_tokens"]) + spread(protocol)
    return max(POOL, 2 * longest * int(max(protocol["batch_sizes"])))


def spread(protocol: Mapping[str, Any]) -> int:
    """Return by how many tokens a prompt is longer or shorter than the protocol's `latency` part says, at most."""
    return max(1, int(JITTER * protocol["prompt_tokens"]))


def turn_tokens(protocol: Mapping[str, Any]) -> int:
    """Return the tokens of a turn, which a protocol's `latency` part says; cells of older records do not."""
    return int(protocol.get("turn_tokens", 2))


def positions(protocol: Mapping[str, Any]) -> int:
    """Return the tokens of the longest generation, prompt included, that a protocol's `latency` part asks for."""
    decoded = max(protocol["decode_tokens"], MOST_WINDOWS * protocol["warmup_rounds"])
    return int(protocol["prompt_tokens"] + spread(protocol) + decoded)


def calls(protocol: Mapping[str, Any]) -> int:
    """Return how often a process runs a whole forward at most, by a protocol's `latency` part, until all is timed."""
    each = MOST_WINDOWS * protocol["warmup_rounds"] + protocol["prefill_repeats"]
    return int(len(protocol["batch_sizes"]) * each)


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


def first_timed(call: Callable[[], object], clock: Clock = time.perf_counter) -> tuple[list[float], Callable[[], None]]:
    """Return a list and a call that does the same; the seconds of its first time are put into the list."""
    first: list[float] = []

    def timed() -> None:
        start = clock()
        call()
        if not first:
            first.append(clock() - start)

    return first, timed


def agree(earlier: Sequence[float], later: Sequence[float]) -> bool:
    """Tell whether the medians of two windows differ by less than `AGREEMENT` of the smaller one."""
    low, high = sorted((median(earlier), median(later)))
    return high < low * (1 + AGREEMENT)
