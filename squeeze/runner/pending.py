"""What a run has to do: the cells that have no record yet. No torch import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from squeeze.artifacts.keys import artifact_key
from squeeze.core.environment import fingerprint
from squeeze.records.record import PROCESS, Record, Status
from squeeze.request.cell import Cell


def pending(
    cells: Iterable[Cell], records: Iterable[Record], environment: Mapping[str, Any], *, retry: bool
) -> list[Cell]:
    """The cells, each once, that no record answers: none with their key, artifact key and fingerprint.

    A record of a failure is an answer, too, unless ``retry``. Raises SqueezeError for a cell whose artifact cannot be
    named: a local model that is not there, a step without a module.
    """
    answered = {
        (record.key, record.artifact_key, record.fingerprint)
        for record in records
        if record.isolation == PROCESS and (record.status is Status.OK or not retry)
    }
    distinct = {cell.key: cell for cell in cells}
    return [
        cell
        for cell in distinct.values()
        if (cell.key, artifact_key(cell), fingerprint(environment, cell)) not in answered
    ]
