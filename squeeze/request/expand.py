"""Expand a request in Hydra's grammar into the cells that it names. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from squeeze.core.errors import SqueezeError
from squeeze.request.cell import Cell
from squeeze.request.choices import GROUPS, SWEEP, Choices
from squeeze.request.overrides import MOST_POINTS, Setting, is_plain_change, parse
from squeeze.request.resolver import Point, Resolver

Settings = Mapping[str, Setting]  # by key; the points of a grid are the product of its settings' values


def cells(
    overrides: Sequence[str], conf_dir: Path | None = None, note: Callable[[str], None] = lambda _: None
) -> list[Cell]:
    """Return the cells that the overrides name, each once, in the order in which they are first named.

    overrides: such as ``["technique=rtn,gptq", "bits=8,4,3", "protocol.rounds=7"]``. ``sweep=NAME`` stands for the
    grids of conf/sweep/NAME.yaml; what is given beside it holds in all of them. conf_dir: see ``Choices.within``.
    note: is told, in a line, of what was given and makes no difference.
    Raises SqueezeError, one line, for whatever is unknown, misspelt, ambiguous or not allowed.
    """
    choices = Choices.within(conf_dir)
    given = parse(overrides, choices.names)
    grids = _grids(given, choices)
    chosen = {group: [name for grid in grids for name in _names(grid.get(group))] for group in GROUPS}
    resolver = Resolver.compose(choices, chosen)
    found: dict[str, Cell] = {}
    for grid in grids:
        resolver.check_keys(grid)
        for point in _points(grid):
            cell = resolver.cell(grid, point)
            found.setdefault(cell.key, cell)
    if unread := resolver.unread(given.keys() - {SWEEP}):
        note(f"no chosen technique reads {', '.join(unread)}")
    return list(found.values())


def _grids(given: Settings, choices: Choices) -> list[Settings]:
    beside = {key: setting for key, setting in given.items() if key != SWEEP}
    sweeps = _names(given.get(SWEEP))
    if not sweeps:
        return [beside]
    return [{**grid, **beside} for name in sweeps for grid in _sweep(name, choices)]


def _sweep(name: str, choices: Choices) -> list[Settings]:
    """Return the grids of a sweep file: its lines ``grids``, each with the overrides of the line ``common``."""
    data = choices.read(SWEEP, name)
    lines = data.get("grids")
    texts = [data.get("common", ""), *lines] if isinstance(lines, list) else []
    if data.keys() - {"common", "grids"} or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise SqueezeError(
            f"sweep {name!r}: expected 'grids', a list of lines of overrides, and at most 'common', a line"
        )
    try:
        common, *grids = (parse(text.split(), choices.names) for text in texts)
    except SqueezeError as error:
        raise SqueezeError(f"sweep {name!r}: {error}") from error
    if any(SWEEP in grid for grid in (common, *grids)):
        raise SqueezeError(f"sweep {name!r}: a sweep cannot name another sweep")
    return [{**common, **grid} for grid in grids]


def _names(setting: Setting | None) -> list[str]:
    """Return the names that a setting chooses in its group."""
    if setting is None:
        return []
    if not is_plain_change(setting):
        raise SqueezeError(f"{setting.key} is always chosen; write {setting.key}=NAME")
    for value in setting.values:
        if not isinstance(value, str):
            raise SqueezeError(
                f"{setting.key}: {value!r} is not allowed; expected a name, or several with commas between"
            )
    return list(setting.values)


def _points(grid: Settings) -> Iterator[Point]:
    count = math.prod(len(setting.values) for setting in grid.values())
    if count > MOST_POINTS:
        raise SqueezeError(f"{' x '.join(grid)} makes {count} points; expected at most {MOST_POINTS}")
    for values in product(*(setting.values for setting in grid.values())):
        yield dict(zip(grid, values, strict=True))
