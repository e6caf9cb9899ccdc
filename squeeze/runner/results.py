"""Define what the stages hand on: an artifact, a scoring, timed processes; each frozen, with its seconds.

Nothing is added to a result after it was made. A stage whose result was in the cache took no seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from squeeze.artifacts import keys
from squeeze.probes import samples
from squeeze.request.cell import Cell

START_UP = frozenset({"start", "imports", "collect"})  # stages of a measuring process that are no model work

Values = dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """Hold an artifact in the cache. info: its build.json; seconds: wall time of its build, 0 if the cache had it."""

    folder: Path
    key: str
    info: Values
    seconds: float = 0.0

    @classmethod
    def read(cls, cell: Cell, seconds: float = 0.0) -> Artifact:
        """Return the cell's artifact, which has been built. Raises OSError or ValueError when it has not."""
        key = keys.artifact_key(cell)
        folder = keys.folder(key)
        return cls(folder, key, json.loads((folder / keys.BUILD_INFO).read_text()), seconds)

    @property
    def hash(self) -> str:
        """Return the hash of its content."""
        return str(self.info["content_hash"])

    @property
    def dtype(self) -> str:
        """Return the dtype it computes in."""
        return str(self.info["dtype"])

    @property
    def step_by_step(self) -> Values:
        """Return what a record keeps of its steps: the quality after each, whether training's energy was counted."""
        found: Values = {"steps": self.info["steps"]} if "steps" in self.info else {}
        if trainings := self.info.get("training"):
            counted = all(each["joules"] is not None for each in trainings)
            found["training_energy"] = "counted" if counted else "not available"
        return found


@dataclass(frozen=True)
class Process:
    """Hold what one measuring process left behind, and what it took.

    values: the scalars and lists of its samples. seconds: its wall time; None for a stage that ran in the process of
    another one, which has the start-up on its account.
    """

    values: Values
    seconds: float | None

    @classmethod
    def read(cls, folder: Path, seconds: float | None) -> Process:
        """Return what lies in a samples folder. Raises OSError or IntegrityError when that is no samples."""
        return cls(samples.read(folder, arrays=False).values, seconds)

    @cached_property
    def work(self) -> float:
        """Return the seconds of model work: of all its stages but the start-up."""
        stages = self.values.get("stages", {})
        return float(sum(spent for name, spent in stages.items() if name not in START_UP))

    @property
    def overhead(self) -> float | None:
        """Return the rest of its wall seconds: start, imports, collecting, writing; None where it has no wall time."""
        return None if self.seconds is None else self.seconds - self.work


@dataclass(frozen=True)
class Scoring:
    """Hold the quality of an artifact. folder: its samples; process: what scored it, None where the cache had it."""

    folder: Path
    process: Process | None = None


@dataclass(frozen=True)
class Measured:
    """Hold a model under measurement, a candidate or a baseline, as far as the stages have come.

    log: receives what its processes print. timings: its process of each round, in order.
    """

    cell: Cell
    log: Path
    artifact: Artifact
    scoring: Scoring | None = None
    timings: tuple[Process, ...] = ()

    @property
    def quality(self) -> Path:
        """Return the folder of its quality samples, which ``stages.score`` has provided."""
        assert self.scoring is not None
        return self.scoring.folder

    @property
    def rounds(self) -> list[Values]:
        """Return the samples of each round's process."""
        return [process.values for process in self.timings]
