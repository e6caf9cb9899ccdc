"""Hold the processes of both sides of a comparison against each other: were they set up alike? Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from squeeze.core.environment import VARIABLE_PREFIXES

VARIABLE = "variable "  # begins the names of what the environment of a process says
STATE = "state"  # of a process, before it had anything of an artifact: `squeeze.probes.global_state`

Values = Mapping[str, Any]


def unlike(rounds: Sequence[Values], baseline: Sequence[Values], *, elsewhere: bool = False) -> list[str]:
    """Name the settings in which a round's process differs from the baseline's, before either had its artifact.

    elsewhere: it is the process of another environment's interpreter, where other libraries, or none, have left
    variables behind; only those count that set threads, instruction sets, allocators or visible devices.
    """
    names: set[str] = set()
    for own, other in zip(rounds, baseline, strict=False):
        one, two = own.get(STATE, {}), other.get(STATE, {})
        names |= {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    return sorted(name for name in names if not (elsewhere and _is_left_behind(name)))


def _is_left_behind(name: str) -> bool:
    return name.startswith(VARIABLE) and not name.removeprefix(VARIABLE).startswith(VARIABLE_PREFIXES)
