"""Know what a run was asked for, what of it has its record, what is still to do, and what of it lacks a control.

The request is kept beside its results, so that ``squeeze resume`` needs no arguments. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from squeeze.artifacts.keys import artifact_key
from squeeze.core import environment
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.files import read_small, write_atomically
from squeeze.records.record import PROCESS, Record, Row, Status, counting
from squeeze.request.cell import Cell

NAME = "plan.json"
LARGEST = 2**28  # bytes: those of 100,000 cells


def save(cells: Sequence[Cell], results: Path) -> None:
    """Keep the cells, resolved as they are now. Raises SqueezeError when the folder cannot be written."""
    try:
        write_atomically(results / NAME, json.dumps([cell.to_json() for cell in cells]).encode())
    except OSError as error:
        raise SqueezeError(f"{results / NAME} cannot be written: {error.strerror}; choose another --results") from error


def load(results: Path) -> list[Cell]:
    """Return the cells of the last run into this folder, in its order.

    Raises SqueezeError when there was none, IntegrityError when its plan is unreadable.
    """
    path = results / NAME
    try:
        return [Cell.from_json(data) for data in json.loads(read_small(path, LARGEST))]
    except FileNotFoundError as error:
        raise SqueezeError(f"{results}: nothing to resume; start with `squeeze run`") from error
    except (OSError, ValueError, TypeError, RecursionError, IntegrityError) as error:
        raise IntegrityError(f"{path} is no plan of cells; name the cells again with `squeeze run`") from error


def row_of(cell: Cell, place: Mapping[str, Any]) -> Row:
    """Return the row that measuring a cell in an environment (``environment.describe``) makes.

    Raises SqueezeError for a cell whose artifact cannot be named: a local model that is not there, a step without a
    module.
    """
    return Row(cell.key, artifact_key(cell), environment.fingerprint(place, cell.runtime))


def answers(records: Iterable[Record]) -> dict[Row, Record]:
    """Return the record that answers each row: as on a board, the newest of a process of its own."""
    return counting(record for record in records if record.isolation == PROCESS)


def pending(cells: Iterable[Cell], records: Iterable[Record], place: Mapping[str, Any], *, retry: bool) -> list[Cell]:
    """Return the cells, each once, that no record answers here.

    A record of a failure is an answer, too, unless ``retry``. Raises SqueezeError as ``row_of`` does.
    """
    found = answers(records)
    answered = {row for row, record in found.items() if record.status is Status.OK or not retry}
    distinct = {cell.key: cell for cell in cells}
    return [cell for cell in distinct.values() if row_of(cell, place) not in answered]


def statuses(cells: Sequence[Cell], records: Iterable[Record]) -> dict[str, Status]:
    """Return cell key -> status of the record that answers it here; the cells that a run would measure are left out."""
    found = answers(records)
    keys = {row.key for row in found}
    recorded = [cell for cell in cells if cell.key in keys]
    here = environment.describe() if recorded else {}
    answering = {cell.key: found.get(row_of(cell, here)) for cell in recorded}
    return {key: record.status for key, record in answering.items() if record is not None}


def uncontrolled(cells: Sequence[Cell], records: Iterable[Record]) -> list[Cell]:
    """Return the trained cells whose control is neither requested nor on record; records are read only if need be."""
    requested = {cell.training for cell in cells if cell.is_control}
    alone = [cell for cell in cells if cell.training and cell.training not in requested]
    if not alone:
        return []
    measured = (Cell.from_json(record.cell) for record in records if record.status is Status.OK)
    known = {cell.training for cell in measured if cell.is_control}
    return [cell for cell in alone if cell.training not in known]


def advice(alone: Sequence[Cell]) -> str:
    """Say in one line what trained cells without control, at least one, lack."""
    others = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
    return (
        f"{alone[0].label}{others}: trained, but without a control, so that a gain may be the text's rather than the "
        "method's; add technique=finetune with the same training_steps and learning_rate"
    )
