"""Gather what a run has found about one attempt at a cell so far."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from squeeze.core import environment, plugins
from squeeze.records.record import BESIDE, Row
from squeeze.records.roofline import Machine
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.equipment import placed
from squeeze.runner.plan import row_of
from squeeze.runner.results import Measured


@dataclass(eq=False)
class Attempt:
    """Hold a candidate and the baselines it is compared with; the runner alone fills it in, result by result.

    row: what it is an attempt at. place: the environment, its state as it was at the beginning. log: receives what its
    processes print. candidate: what the stages have found of it, None until it is built. quality_baseline: the
    uncompressed model in the artifact's dtype; speed_baseline: the one that shared the candidate's rounds.
    rounds_ended: why no further ones were timed. baseline_seconds: wall time of the baselines' processes that were
    started on this cell's account. machine: physical limits, where they were measured.
    """

    cell: Cell
    row: Row
    id: str
    started: str
    place: Mapping[str, Any]
    log: Path
    candidate: Measured | None = None
    quality_baseline: Measured | None = None
    speed_baseline: Measured | None = None
    rounds_ended: str = ""
    baseline_seconds: float = 0.0
    machine: Machine | None = None

    @classmethod
    def begin(cls, cell: Cell, store: RecordStore, place: Mapping[str, Any]) -> Attempt:
        """Return a new attempt, its log in the store's folder."""
        name, row = uuid.uuid4().hex, row_of(cell, place)
        beside = environment.fingerprint(place, cell.eager_runtime)
        here = {
            **placed(place, cell),
            **({} if beside == row.fingerprint else {BESIDE: beside}),
            **_plugins(cell),
            "state": environment.state(),
        }
        return cls(cell, row, name, now(), here, store.log(cell, name))

    @property
    def beside(self) -> str:
        """Return the fingerprint of the rows that it is compared with: those of the eager runtime here."""
        return str(self.place.get(BESIDE, self.row.fingerprint))

    @property
    def built(self) -> Measured:
        """Return the candidate, which has been built."""
        assert self.candidate is not None
        return self.candidate


def _plugins(cell: Cell) -> dict[str, dict[str, str]]:
    """Return the versions of the plugins that a cell names, for its record."""
    named = plugins.versions([cell.technique, cell.runtime])
    return {"plugins": named} if named else {}


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
