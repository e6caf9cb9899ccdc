"""Decide which cells are measured together, and in which order.

A block is a few candidates that share each round's baseline process. Whatever drifts while a block is measured
(temperature, a neighbour's load) must not favour anyone: rounds come in pairs, the second in the first one's opposite
order, so that every member stands, on average over a pair, in the middle; each pair starts with another member.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from squeeze.core.hashing import digest
from squeeze.request.cell import Cell

T = TypeVar("T")


def blocks(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return cells that can share a baseline process, at most ``protocol.block`` together, in the order they came.

    Those share one that have the same model in whatever dtype, the same runtime and the same
    protocol but for what calibrated rows alone are asked (text of another domain).
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(digest([cell.model_identity, cell.runtime, cell.common_protocol]), []).append(cell)
    return [
        group[start : start + group[0].protocol["block"]]
        for group in groups.values()
        for start in range(0, len(group), group[0].protocol["block"])
    ]


def order(members: Sequence[T], round_number: int) -> list[T]:
    """Return the members of a block in the order in which one round measures them: AB BA AB ... for two of them."""
    pair, second = divmod(round_number, 2)
    shift = pair % len(members) if len(members) > 2 else 0
    turned = [*members[shift:], *members[:shift]]
    return turned[::-1] if second else turned
