"""Compare two processes that worked in turns, each turn against the other's turn beside it.

Most of a machine's noise comes and goes within a second, so what is compared must be taken within one: the ratio of a
round is the median over its turns. The process stays the unit of replication; over rounds, see `statistics.ratio`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

# Kinds of calls that are timed, and the letter before what tells those of a kind apart: the size of their batch, or the
# tokens of their prompt.
POINTS: Mapping[str, str] = {"ttft_s": "b", "token_s": "b", "encode_s": "b", "prompt_s": "t"}
TIMINGS = tuple(POINTS)
BEFORE_POINT = "|".join(f"{kind}_{letter}" for kind, letter in POINTS.items())  # of an array's name
ARRAY = re.compile(rf"({BEFORE_POINT})([1-9]\d*)")
DRAFTED = "calls"  # of a process that drafts: by batch size, of each token whether a call began with it
CALLS = re.compile(r"calls_b([1-9]\d*)")  # the array of these
HAND_OVERS = 0.020  # seconds a turn: what members wait while they hand over, alone (up to 17 ms)

Values = Mapping[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]


def array_of(kind: str, point: str) -> str:
    """Return the name of the array that holds the times of some calls: ``token_s_b8``, ``prompt_s_t512``.

    point: the size of the batch, or the tokens of the prompt.
    """
    return f"{kind}_{POINTS[kind]}{point}"


def timed(array: str) -> tuple[str, str] | None:
    """Return the kind and the point of the calls whose times an array of this name holds; None of any other array."""
    found = ARRAY.fullmatch(array)
    return None if found is None else (found[1].rpartition("_")[0], found[2])


def turn_ratio(candidate: npt.ArrayLike, baseline: npt.ArrayLike, turns: int) -> float:
    """Return the candidate's seconds over the baseline's: the geometric median over turns of the ratio of medians.

    candidate, baseline: (n,) seconds of the same calls of each, in order, in ``turns`` turns of equally many calls (the
    last may have fewer). Raises ValueError when they are not paired, or a time is not a positive, finite number.
    """
    own, other = np.asarray(candidate, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if own.ndim != 1 or own.shape != other.shape or not 0 < turns <= own.size:
        raise ValueError(f"turns must be paired: {own.shape} and {other.shape} calls in {turns} turns")
    times = np.stack([own, other])
    if not (np.isfinite(times) & (times > 0)).all():
        raise ValueError(f"seconds must be positive and finite, found {times.min()} to {times.max()}")
    length = -(-own.size // turns)
    medians = np.array([np.median(times[:, start : start + length], axis=1) for start in range(0, own.size, length)])
    return float(np.exp(np.median(np.log(medians[:, 0] / medians[:, 1]))))


def round_ratio(own: Values, baseline: Values, name: str, point: str) -> float:
    """Return the seconds of one round's process over the baseline's, of the calls ``name`` at a point of theirs.

    By turns where both processes were ``interleaved``, else the ratio of their medians. Where calls of one gave several
    tokens, of whole generations: a few turns without a guess that was right are as much a part of it as all others.
    """
    if any(in_bursts(values, name, point) for values in (own, baseline)):
        return _whole(own, name, point) / _whole(baseline, name, point)
    times = own[name][point], baseline[name][point]
    if own.get("interleaved") and baseline.get("interleaved"):
        return turn_ratio(*times, turns=len(own["turns"][f"{name}/{point}"]))
    candidate, other = (float(np.median(seconds)) for seconds in times)
    return candidate / other


def in_bursts(values: Values, name: str, point: str) -> bool:
    """Tell whether tokens of a process came several at a time: their median is no token's time, the mean is."""
    return name == "token_s" and point in values.get(DRAFTED, {})


def seconds_each(values: Values, name: str, point: str) -> float:
    """Return the seconds of one of a process's calls ``name``: the median; of tokens that came in bursts, the mean."""
    times = values[name][point]
    return float(np.mean(times) if in_bursts(values, name, point) else median(times))


def _whole(values: Values, name: str, point: str) -> float:
    """Return the seconds of a token over a whole generation; one that gave them singly counts by medians of turns.

    So what disturbed one of its calls does not count, while what slowed a turn of both does.
    """
    times = np.asarray(values[name][point], dtype=np.float64)
    if in_bursts(values, name, point) or not values.get("interleaved"):
        return seconds_each(values, name, point)
    length = -(-times.size // len(values["turns"][f"{name}/{point}"]))
    return float(np.mean([np.median(times[start : start + length]) for start in range(0, times.size, length)]))


def how_timed(rounds: Sequence[Values], baseline: Sequence[Values]) -> str:
    """Say how the processes of the rounds were timed: interleaved, sequential, or the first in some rounds only."""
    pairs = [one.get("interleaved") and other.get("interleaved") for one, other in zip(rounds, baseline, strict=True)]
    return "interleaved" if all(pairs) else "partly interleaved" if any(pairs) else "sequential"


def processes(arrays: Arrays, prefix: str = "") -> list[dict[str, Any]]:
    """Return of each round's process its times and turns as the latency stage gave them, from a record's samples.

    prefix: ``baseline_`` for the baseline's processes.
    """
    kept = [name for name in arrays if name.startswith(prefix)]
    known = [(name, *found) for name in kept if (found := timed(name.removeprefix(prefix)))]
    count = len(arrays[known[0][0]]) if known else 0
    interleaved = arrays.get(f"{prefix}interleaved", np.zeros(count, dtype=bool))  # records of schema 1 have none
    made: list[dict[str, Any]] = [
        {"interleaved": bool(flag), "turns": {}, DRAFTED: {}, **{kind: {} for kind in TIMINGS}} for flag in interleaved
    ]
    for name, kind, point in known:
        for values, times in zip(made, arrays[name], strict=True):
            values[kind][point] = times.tolist()
        for values, turns in zip(made, arrays.get(f"{prefix}turns_{array_of(kind, point)}", ()), strict=False):
            values["turns"][f"{kind}/{point}"] = turns.tolist()
    for name in kept:
        if (calls := CALLS.fullmatch(name.removeprefix(prefix))) is not None:
            for values, begun in zip(made, arrays[name], strict=True):
                values[DRAFTED][calls[1]] = begun.tolist()
    return made


def round_ratios(arrays: Arrays, name: str, point: str) -> list[float]:
    """Return `round_ratio` of each round of a record's samples, (rounds,)."""
    pairs = zip(processes(arrays), processes(arrays, "baseline_"), strict=True)
    return [round_ratio(own, baseline, name, point) for own, baseline in pairs]


def contention(rounds: Sequence[Values]) -> float:
    """Return in what share of the timed seconds some task had to wait for a processor, the mean over rounds.

    It counts tasks of all processes, as `squeeze.probes.turns.pressure` reads them; alone, a row comes to 2 to 4 %. A
    model of turns so short that handing over takes most of it comes to 0: such waiting is not of other work. NaN where
    the system does not say.
    """
    shares = []
    for values in rounds:
        for began in values["turns"].values():
            (first, _, stalled), (last, _, stalled_then) = began[0], began[-1]
            if last > first:
                waited = stalled_then - stalled
                shares.append(0.0 if waited <= HAND_OVERS * len(began) else waited / (last - first))
    return float(np.mean(shares)) if shares else float("nan")


def is_timing(array: str) -> bool:
    """Tell whether an array of a record's samples, of whichever model, has a row for each timed process."""
    return array.removeprefix("baseline_").startswith(
        (*TIMINGS, "turns_", "interleaved", "gaps_", "calls_", "drafting_")
    )
