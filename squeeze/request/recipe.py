"""Say by which overrides a cell is asked for again. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from squeeze.core.errors import SqueezeError
from squeeze.request import axes
from squeeze.request.cell import LABELS, Cell
from squeeze.request.choices import GROUPS, Choices
from squeeze.request.expand import cells

_ABSENT = object()  # stands for a field that is not there
BY_FIELDS = ("calibration", "protocol")  # groups whose choices overrides can say in full
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z][\w./:@-]*")  # what needs no quotes


class Recipe(NamedTuple):
    """Hold overrides. exact: whether they name this very cell; else ``why`` not."""

    overrides: list[str]
    exact: bool
    why: str = ""


def recipe(cell: Cell, conf_dir: Path | None = None) -> Recipe:
    """Return the fewest overrides that name the cell with today's configuration, as near as they come to it."""
    choices = Choices.within(conf_dir)
    chosen = {group: str(getattr(cell, group).get("name", choices.defaults[group])) for group in GROUPS}
    # What has a name of its own, such as a text of the user's, is told field by field.
    chosen |= {group: choices.defaults[group] for group in BY_FIELDS if chosen[group] not in choices.names(group)}
    overrides = [f"{group}={name}" for group, name in chosen.items() if name != choices.defaults[group]]
    try:
        overrides += list(_settings(cell, _only(overrides, conf_dir), choices.scalars))
        every = [*overrides, *_edits(cell, _only(overrides, conf_dir))]
        found = _only(every, conf_dir)
    except SqueezeError as error:
        return Recipe(overrides, exact=False, why=str(error))
    if found.key == cell.key:
        return Recipe(every, exact=True)
    other = ", ".join(dict.fromkeys(path for path, _, _ in _differing(cell.to_json(), found.to_json())))
    return Recipe(overrides, exact=False, why=f"today's configuration differs in {other}")


def _only(overrides: list[str], conf_dir: Path | None) -> Cell:
    return cells(overrides, conf_dir)[0]


def _settings(cell: Cell, found: Cell, scalars: Mapping[str, Any]) -> Iterator[str]:
    """Yield the axes whose value is another than by default."""
    for axis in (axis for axis in axes.AXES if axis.name in scalars):
        own, default = (_axis(each, axis) for each in (cell, found))
        if own != default and own is not _ABSENT:
            yield f"{axis.name}={_written(own)}"


def _axis(cell: Cell, axis: axes.Axis) -> Any:
    if axis.kind == axes.CELL:
        return getattr(cell, axis.name)
    if axis.kind == axes.STEP:
        return cell.step_values.get(axis.name, _ABSENT)
    part: Mapping[str, Any] = cell.model if axis.kind == axes.MODEL else cell.runtime
    return part.get(axis.name, _ABSENT)


def _edits(cell: Cell, found: Cell) -> Iterator[str]:
    """Yield what else differs, field by field: ``calibration.samples=8``."""
    for path, own, other in _differing(cell.to_json(), found.to_json()):
        if own is _ABSENT:
            yield f"~{path}"
        else:
            yield f"{'+' if other is _ABSENT else ''}{path}={_written(own)}"


def _differing(own: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted path and both values of each field that differs, labels left out."""
    if isinstance(own, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*own, *other]):
            if name not in LABELS:
                below = f"{path}.{name}" if path else str(name)
                yield from _differing(own.get(name, _ABSENT), other.get(name, _ABSENT), below)
    elif isinstance(own, list) and isinstance(other, list) and len(own) == len(other):
        for index, pair in enumerate(zip(own, other, strict=True)):
            yield from _differing(*pair, f"{path}.{index}")
    elif own != other or type(own) is not type(other):
        yield path, own, other


def _written(value: Any) -> str:
    """Write a value as Hydra's grammar reads it."""
    if not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"))
    return value if PLAIN.fullmatch(value) else "'{}'".format(value.replace("\\", "\\\\").replace("'", "\\'"))
