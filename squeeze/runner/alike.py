"""Hold the processes of both sides of a comparison against each other: were they set up alike? Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STATE = "state"  # of a process, before it had anything of an artifact: `squeeze.probes.global_state`

Values = Mapping[str, Any]


def unlike(rounds: Sequence[Values], baseline: Sequence[Values]) -> list[str]:
    """Name the settings in which a round's process differs from the baseline's, before either had its artifact."""
    names: set[str] = set()
    for own, other in zip(rounds, baseline, strict=False):
        one, two = own.get(STATE, {}), other.get(STATE, {})
        names |= {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    return sorted(names)
