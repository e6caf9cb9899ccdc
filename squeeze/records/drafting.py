"""Estimate what guessing tokens won, by kind of prompt, and how many guesses were right, from raw samples.

A round's process has decoded the same prompt with and without guesses, piece by piece in turns, so that a speed-up is
paired within a process; the process is the unit of replication.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.records.estimates import Estimates, suffix
from squeeze.records.record import Estimate
from squeeze.records.statistics import ratio

PART = "drafting"  # of a process's samples: kind of prompt -> FIELDS
# Seconds a token without guesses and with them; steps, and in all of them tokens that were guessed, and that stood.
FIELDS = ("plain_s", "drafted_s", "steps", "drafted", "accepted")
ARRAY = re.compile(rf"{PART}_([a-z]+)")

Values = Mapping[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]


def figures(rounds: Sequence[Values]) -> Estimates:
    """Return, of a row that drafts, what follows; of any other, nothing.

    By kind of prompt drafting_speedup_KIND, how many times as fast decoding is as without guesses, the same text by the
    same model in the same process; accepted_tokens_KIND, guesses that stood a step, over all rounds;
    acceptance_KIND, the share of guesses that stood. Of the timed decoding: accepted_tokens and acceptance, of batch
    sizes above 1 with suffix _b8.
    """
    found: Estimates = {}
    for kind in rounds[0].get(PART, {}) if rounds else ():
        each = [values[PART][kind] for values in rounds]
        times = [one["plain_s"] / one["drafted_s"] for one in each]
        found[f"drafting_speedup_{kind}"] = ratio(times, [1.0] * len(times))
        found |= _acceptance(each, f"_{kind}")
    for batch in rounds[0].get("steps", {}) if rounds else ():
        found |= _acceptance([_totals(values["steps"][batch]) for values in rounds], suffix(batch))
    return found


def arrays(rounds: Sequence[Values]) -> dict[str, npt.NDArray[Any]]:
    """Return what a record's samples keep: by kind of prompt, (rounds, FIELDS) float64."""
    kinds = rounds[0].get(PART, {}) if rounds else {}
    return {
        f"{PART}_{kind}": np.array([[values[PART][kind][name] for name in FIELDS] for values in rounds], dtype=float)
        for kind in kinds
    }


def of_arrays(kept: Arrays) -> list[dict[str, Any]]:
    """Return the samples of each round's process that ``arrays`` made them of; nothing of a row that does not draft.

    Raises ValueError where an array is not of the shape that it made.
    """
    rounds: list[dict[str, Any]] = []
    for name, array in kept.items():
        if (kind := ARRAY.fullmatch(name)) is None:
            continue
        rounds = rounds or [{PART: {}} for _ in array]
        for values, row in zip(rounds, array, strict=True):
            values[PART][kind[1]] = dict(zip(FIELDS, row.tolist(), strict=True))
    return rounds


def _totals(steps: Sequence[Sequence[int]]) -> dict[str, int]:
    """Return the sums over steps, each (drafted, accepted)."""
    return {
        "steps": len(steps),
        "drafted": sum(drafted for drafted, _ in steps),
        "accepted": sum(accepted for _, accepted in steps),
    }


def _acceptance(rounds: Sequence[Mapping[str, float]], ending: str) -> Estimates:
    return {
        f"accepted_tokens{ending}": _over_all(rounds, "steps"),
        f"acceptance{ending}": _over_all(rounds, "drafted"),
    }


def _over_all(rounds: Sequence[Mapping[str, float]], by: str) -> Estimate:
    """Return how many guesses stood by each step, or by each guess, over all rounds; NaN where there were none.

    With the least and greatest of the rounds: a spread, not a confidence interval.
    """
    each = [values["accepted"] / values[by] for values in rounds if values[by]]
    if not each:
        return Estimate(math.nan)
    value = sum(values["accepted"] for values in rounds) / sum(values[by] for values in rounds)
    return Estimate(value, min(each), max(each), n=len(rounds))
