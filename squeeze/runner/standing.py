"""How the cells of a request stand: which of them have a record that a run would accept. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from squeeze.artifacts.keys import artifact_key
from squeeze.core import environment
from squeeze.records.record import PROCESS, Record, Status
from squeeze.request.cell import Cell


def standing(cells: Sequence[Cell], records: Iterable[Record]) -> dict[str, Status]:
    """Cell key -> status of its latest record; the cells that a run would measure are left out.

    As for a run, a record counts when it is of this artifact, of this environment and of a process of its own.
    """
    ordered = sorted((record for record in records if record.isolation == PROCESS), key=lambda record: record.finished)
    answers = {(record.key, record.artifact_key, record.fingerprint): record.status for record in ordered}
    keys = {record.key for record in ordered}
    recorded = [cell for cell in cells if cell.key in keys]
    here = environment.describe() if recorded else {}
    found = {}
    for cell in recorded:
        status = answers.get((cell.key, artifact_key(cell), environment.fingerprint(here, cell)))
        if status is not None:
            found[cell.key] = status
    return found
