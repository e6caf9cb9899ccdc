"""One attempt at a cell: what a run has gathered about it so far."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from squeeze.artifacts.keys import artifact_key
from squeeze.core import environment
from squeeze.records.roofline import Machine
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.stages import Measured


@dataclass(eq=False)
class Attempt:
    """A candidate, and the baselines that it is compared with.

    place: the environment, its state as it was at the beginning. quality_baseline: the uncompressed model in the
    artifact's dtype; speed_baseline: the one that shared the candidate's rounds. baseline_seconds: wall time of the
    baselines' processes that were started on this cell's account. machine: physical limits, where they were measured.
    """

    member: Measured
    artifact_key: str
    fingerprint: str
    id: str
    started: str
    place: Mapping[str, Any]
    quality_baseline: Measured | None = None
    speed_baseline: Measured | None = None
    baseline_seconds: float = 0.0
    machine: Machine | None = None

    @classmethod
    def begin(cls, cell: Cell, store: RecordStore, place: Mapping[str, Any]) -> Attempt:
        """A new attempt, its log in the store's folder."""
        name = uuid.uuid4().hex
        return cls(
            Measured(cell, store.log(cell, name)),
            artifact_key(cell),
            environment.fingerprint(place, cell),
            name,
            now(),
            {**place, "state": environment.state()},
        )

    @property
    def cell(self) -> Cell:
        """The cell that is attempted."""
        return self.member.cell


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
