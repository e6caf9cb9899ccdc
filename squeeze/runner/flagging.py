"""Flag what must be known of a row, from the samples of its attempt. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from squeeze.records.record import (
    CONTENDED,
    DECODES_OTHERWISE,
    ENCODES_OTHERWISE,
    GRID_FLATTERED,
    NOT_CAUSAL,
    NOT_REALISED,
    UNSTEADY,
    WARMING,
)
from squeeze.records.statistics import trend
from squeeze.records.turns import contention, in_bursts
from squeeze.runner.attempt import Attempt

MOST_CONTENTION = 0.05  # of the timed seconds, in which some task waited for a processor
MOST_TREND = 0.10  # of the time of a token within a process; one way in all rounds, it is no noise

Values = Mapping[str, Any]


def flags(attempt: Attempt, found: Values) -> Iterator[str]:
    """Yield the flags of a row, from what was found of it: its samples that no round changes, and conclusions."""
    assert attempt.speed_baseline is not None
    if any(_unsteady(member.rounds) for member in (attempt.built, attempt.speed_baseline)):
        yield UNSTEADY
    if any(contention(member.rounds) > MOST_CONTENTION for member in (attempt.built, attempt.speed_baseline)):
        yield CONTENDED
    if any(_warming(member.rounds) for member in (attempt.built, attempt.speed_baseline)):
        yield WARMING
    if attempt.built.artifact.info.get(GRID_FLATTERED):
        yield GRID_FLATTERED
    if found.get("mismatches"):
        yield NOT_REALISED
    by_layer = any(str(each).startswith(DECODES_OTHERWISE) for each in found.get("mismatches", ()))
    if by_layer or found.get("decode_gap", 0.0) > found.get("decode_gap_allowed", 0.0):
        yield DECODES_OTHERWISE
    if found.get("encode_gap", 0.0) > found.get("encode_gap_allowed", 0.0):
        yield ENCODES_OTHERWISE
    if found.get("causal") is False:
        yield NOT_CAUSAL


def _unsteady(rounds: Sequence[Values]) -> bool:
    """Tell whether half the processes or more did not settle; a single one moves no median of rounds."""
    return 2 * sum(bool(values["unsteady"]) for values in rounds) >= len(rounds)


def _warming(rounds: Sequence[Values]) -> bool:
    """Tell whether, at some batch size, the times of a token, or of a classifier, moved one way by over 10 % in all.

    Not of tokens that come several at a time: text that goes round in circles is guessed more and more easily.
    """
    for name in ("token_s", "encode_s"):
        for batch in rounds[0].get(name, {}):
            if in_bursts(rounds[0], name, batch):
                continue
            moved = [trend(values[name][batch]) for values in rounds]
            if min(moved) > MOST_TREND or max(moved) < -MOST_TREND:
                return True
    return False
