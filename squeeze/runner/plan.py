"""Know what runs were asked for, what of it has its record, what is still to do, and what of it lacks a control.

Each run keeps what it sets out to measure in a file of its own beside the results, so that ``squeeze resume`` needs no
arguments and finishes all of them. Imports no torch.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from squeeze.artifacts.keys import artifact_key
from squeeze.core import environment
from squeeze.core.disk import is_full_disk
from squeeze.core.errors import IntegrityError, SqueezeError, TransientError
from squeeze.core.files import read_small, write_atomically
from squeeze.records.record import PROCESS, Record, Row, Status, counting
from squeeze.records.store import warn
from squeeze.request.cell import Cell
from squeeze.runner.equipment import placed

FOLDER = "plans"
FORMER = "plan.json"  # of versions that kept the last run's cells alone
LARGEST = 2**28  # bytes: those of 100,000 cells


@dataclass(frozen=True)
class Plan:
    """Hold what a run set out to measure. started: when, in UTC, as ISO 8601; empty where that was not kept."""

    cells: Sequence[Cell]
    started: str = ""


def save(cells: Sequence[Cell], results: Path) -> Path:
    """Keep the cells that a run sets out to measure now, resolved as they are now; return the file.

    Raises SqueezeError when the folder cannot be written, TransientError when the disk is full.
    """
    now = datetime.now(UTC)
    path = results / FOLDER / f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.json"
    content = {"started": now.isoformat(timespec="seconds"), "cells": [cell.to_json() for cell in cells]}
    try:
        write_atomically(path, json.dumps(content).encode())
    except OSError as error:
        if is_full_disk(error):
            raise TransientError(f"{path} cannot be written: the disk is full; free some space") from error
        raise SqueezeError(f"{path} cannot be written: {error.strerror}; choose another --results") from error
    return path


def load(results: Path, report: Callable[[Path, str], None] = warn) -> list[Plan]:
    """Return the plans of all runs into this folder, the earliest first.

    report(path, why): hears of those that are not readable. Raises SqueezeError when there is none,
    IntegrityError when none is readable.
    """
    paths = [results / FORMER, *sorted((results / FOLDER).glob("*.json"))]
    paths = [path for path in paths if path.exists()]
    if not paths:
        raise SqueezeError(f"{results}: nothing to resume; start with `squeeze run`")
    plans = []
    for path in paths:
        try:
            plans.append(_read(path))
        except (OSError, ValueError, TypeError, KeyError, RecursionError, IntegrityError):
            damaged = f"{path} is no plan of cells; name the cells again with `squeeze run`"
            report(path, "it is no plan of cells; name the cells again with `squeeze run`")
    if not plans:
        raise IntegrityError(damaged)
    return plans


def unfinished(plans: Iterable[Plan], records: Iterable[Record], *, retry: bool) -> list[Cell]:
    """Return the cells, each once, of which no record has come since a run set out to measure them.

    A record counts wherever and with whatever version it was made: the cell was asked for once, and measured. A newest
    record of a failure counts, too, unless ``retry``.
    """
    newest: dict[str, Record] = {}
    for record in records:
        known = newest.get(record.key)
        if record.isolation == PROCESS and (known is None or known.finished <= record.finished):
            newest[record.key] = record
    asked = ((cell, newest.get(cell.key), plan.started) for plan in plans for cell in plan.cells)
    left = {
        cell.key: cell
        for cell, record, since in asked
        if record is None or record.finished < since or (retry and record.status is not Status.OK)
    }
    return list(left.values())


def measurable(cells: Iterable[Cell], report: Callable[[str], None]) -> list[Cell]:
    """Return the cells whose artifact can be named today; ``report(line)`` hears of the others.

    One that was asked for long ago, of a local model that is gone, must not keep the rest from being measured.
    """
    left = []
    for cell in cells:
        try:
            artifact_key(cell)
        except SqueezeError as error:
            report(f"{cell.label} is passed over: {error}")
        else:
            left.append(cell)
    return left


def _read(path: Path) -> Plan:
    content = json.loads(read_small(path, LARGEST))
    cells, started = (content, "") if isinstance(content, list) else (content["cells"], str(content["started"]))
    return Plan([Cell.from_json(data) for data in cells], started)


def row_of(cell: Cell, place: Mapping[str, Any]) -> Row:
    """Return the row that measuring a cell in an environment (``environment.describe``) makes.

    Raises SqueezeError for a cell whose artifact cannot be named: a local model that is not there, a step without a
    module; and for an engine without exact versions.
    """
    return Row(cell.key, artifact_key(cell), environment.fingerprint(placed(place, cell), cell.runtime))


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
    control = "finetune_classifier" if alone[0].model["kind"] == "classifier" else "finetune"
    others = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
    return (
        f"{alone[0].label}{others}: trained, but without a control, so that a gain may be the text's rather than the "
        f"method's; add technique={control} with the same learning_rate and training_steps (of a chain: all)"
    )
