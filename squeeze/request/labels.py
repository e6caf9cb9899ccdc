"""Tell cells apart whose label is the same: ``gptq-4-g64@samples=8`` beside ``gptq-4-g64@samples=128``.

A cell's own label (``Cell.label``) says what is varied most; it names files, and does not know of other cells. Where
people choose among cells, those that share one get, behind an @, what differs among them. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from squeeze.core.hashing import canonical
from squeeze.request.cell import LABELS, Cell

PARTS = ("model", "technique", "calibration", "runtime", "protocol", "replicate")
LONGEST = 24  # characters of a value
AT = "@"


class Labelled(NamedTuple):
    """Hold what tells a cell from others: its own label, its key, and its parts as canonical JSON."""

    label: str
    key: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, cell: Cell) -> Labelled:
        """Return what tells a cell from others."""
        return cls(cell.label, cell.key, tuple(canonical(getattr(cell, part)) for part in PARTS))


def distinct(cells: Sequence[Labelled]) -> list[str]:
    """Return a label for each cell; those of different cells differ, and are their own where that suffices."""
    sharing: dict[str, dict[str, Labelled]] = defaultdict(dict)
    for cell in cells:
        sharing[cell.label].setdefault(cell.key, cell)
    named = {
        key: f"{label}{AT}{','.join(told)}"
        for label, alike in sharing.items()
        if len(alike) > 1
        for key, told in _differences(list(alike.values())).items()
    }
    return [named.get(cell.key, cell.label) for cell in cells]


def _differences(cells: Sequence[Labelled]) -> dict[str, list[str]]:
    """Map the key of each of some cells to what it differs in from the others; the beginning of it, if in no word."""
    told: dict[str, list[str]] = {cell.key: [] for cell in cells}
    for at in range(len(PARTS)):
        parts = [json.loads(cell.parts[at]) for cell in cells]
        for cell, words in zip(cells, _words(parts), strict=True):
            told[cell.key] += words
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    for words in told.values():
        counts[tuple(words)] += 1
    return {key: words if counts[tuple(words)] == 1 else [*words, key[:8]] for key, words in told.items()}


def _words(parts: Sequence[Any]) -> list[list[str]]:
    """Say, of each of the same part of some cells, what differs: its name where names tell all, else its fields."""
    flat = [dict(_leaves(part)) for part in parts]
    if all(each == flat[0] for each in flat):
        return [[] for _ in parts]
    names = [part.get("name") if isinstance(part, Mapping) else None for part in parts]
    if None not in names and len(set(names)) == len({canonical(each) for each in flat}):
        return [[_short(name)] for name in names]
    fields = [name for name in dict.fromkeys(name for each in flat for name in each) if len(_values(flat, name)) > 1]
    return [[f"{_last(name)}={_short(each[name])}" for name in fields if name in each] for each in flat]


def _values(flat: Sequence[Mapping[str, Any]], name: str) -> set[str]:
    return {canonical(each.get(name)) for each in flat}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (not path or value):
        for name, item in value.items():
            if name not in LABELS:
                yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, value


def _last(path: str) -> str:
    """Return the part of a field's path that says most: ``clip`` of ``.steps.0.clip``, ``replicate`` of nothing."""
    return next((part for part in reversed(path.split(".")) if part and not part.isdecimal()), "replicate")


def _short(value: Any) -> str:
    """Return a value as a word that is safe in a file name and in a shell."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]", "_", text)[:LONGEST]
