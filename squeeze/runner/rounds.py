"""Decide which cells are measured together, in which order, and for how many rounds.

A block is a few candidates that share each round's baseline process. Whatever drifts while a block is measured
(temperature, a neighbour's load) must not favour anyone: rounds come in pairs, the second in the first one's opposite
order, so that every member stands, on average over a pair, in the middle; each pair starts with another member.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from squeeze.core.hashing import digest
from squeeze.records.record import Estimate
from squeeze.request.cell import Cell

T = TypeVar("T")

SHARE = 0.8  # of the available memory that the processes of a group may take together
NARROW = 1.05  # the interval's end over its centre that makes further rounds needless


def blocks(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return cells that can share a baseline process, at most ``protocol.block`` together, in the order they came.

    Those share one that have the same model in whatever dtype, whatever runtime with as much of the machine, and the
    same protocol but for what calibrated rows alone are asked (text of another domain).
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(digest([cell.model_identity, cell.eager_runtime, cell.common_protocol]), []).append(cell)
    return [
        group[start : start + group[0].protocol["block"]]
        for group in groups.values()
        for start in range(0, len(group), group[0].protocol["block"])
    ]


def companies(needs: Sequence[int], available: int) -> list[list[int]]:
    """Split a block into groups whose members and baseline may be alive at once; return the positions of candidates.

    needs: bytes of memory of each member, the baseline's first; available: bytes that the machine can spare, of which
    a fifth is left alone. A group of which even one candidate does not fit beside the baseline has that one alone.
    """
    groups: list[list[int]] = []
    for position in range(1, len(needs)):
        if groups and fits([needs[at] for at in (0, *groups[-1], position)], available):
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def fits(needs: Sequence[int], available: int) -> bool:
    """Tell whether processes of these bytes may be alive at once, a fifth of what is available left alone."""
    return sum(needs) <= SHARE * available


def settled(done: int, protocol: Mapping[str, Any], speed_up: Estimate) -> str:
    """Return why no further rounds are needed after ``done`` of them, or nothing when two more are.

    A protocol's ``rounds`` are always measured; then pairs are added, up to ``most_rounds``, while the half-width of
    the interval exceeds `NARROW`. Looking only from the eighth round on keeps false alarms near 5 %, which
    tests/records/test_simulations.py shows for the noise that was measured.
    """
    if done < protocol["rounds"]:
        return ""
    if speed_up.low is not None and speed_up.high is not None and speed_up.high <= speed_up.low * NARROW**2:
        return f"half-width within {NARROW - 1:.0%}"
    return "" if done + 2 <= protocol.get("most_rounds", protocol["rounds"]) else "most rounds"


def order(members: Sequence[T], round_number: int) -> list[T]:
    """Return the members of a block in the order in which one round measures them: AB BA AB ... for two of them."""
    pair, second = divmod(round_number, 2)
    shift = pair % len(members) if len(members) > 2 else 0
    turned = [*members[shift:], *members[:shift]]
    return turned[::-1] if second else turned
