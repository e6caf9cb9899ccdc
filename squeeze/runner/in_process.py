"""Measure cells one after the other in one process: quick, for developing a technique.

Each is compared with the uncompressed model in the same dtype, measured once in the same process. So its record says
``isolation: shared``, carries no verdict on speed, and does not stand in for an official one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from squeeze.artifacts import keys
from squeeze.core import environment
from squeeze.core.scratch import Scratch
from squeeze.probes import samples
from squeeze.records.record import Record, Status
from squeeze.records.sanitize import public
from squeeze.records.store import RecordStore
from squeeze.request import expand
from squeeze.request.cell import Cell
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.runner.jobs.executor import SCRATCH
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import Failure, status_of
from squeeze.runner.results import Artifact, Measured, Process, Scoring
from squeeze.runner.stages import check_calibration
from squeeze.runtimes import environments

ISOLATION = "shared"
STAGES: tuple[Literal["latency"], Literal["quality"]] = ("latency", "quality")


@dataclass
class InProcess:
    """Take the measurements of one session. cells: those that were asked for; results: the folder for their records."""

    cells: Sequence[Cell]
    results: Path
    _scratch: Scratch = field(default_factory=lambda: Scratch.make(SCRATCH))

    @classmethod
    def of(cls, overrides: Sequence[str], results: Path, conf_dir: Path | None = None) -> InProcess:
        """Return the session of the cells that overrides such as ``technique=rtn bits=4`` name.

        conf_dir: the user's own choices, see ``request.choices``.

        Raises SqueezeError for a wrong request.
        """
        return cls(expand.cells(overrides, conf_dir), results)

    def jobs(self) -> list[Job]:
        """Return both stages of each cell, every baseline before the candidates that need it."""
        cells = {each.key: each for cell in self.cells for each in (_baseline(cell), cell)}
        return [self._job(cell, stage) for cell in cells.values() for stage in STAGES]

    def build(self, job: Job) -> None:
        """Build the job's artifact in this process, unless the cache has it.

        Raises Unsupported when a technique refuses the model, and for an engine that lies in another environment than
        this process; IntegrityError for a cell that is calibrated on what it is scored on, and whatever else building
        raises.
        """
        environments.check_here(job.cell.runtime)
        check_calibration(job.cell)
        artifact_of(job.cell)

    def records(self, failures: Mapping[Path, BaseException]) -> Iterator[Record]:
        """Write the record of each cell that was measured or failed, and yield it; a fault of the environment is none.

        failures: the first exception of a job, by the job's ``out``.
        """
        store = RecordStore(self.results)
        store.prepare()
        place = environment.describe()
        for cell in self.cells:
            failure = self._failure(cell, failures)
            if failure is not None and failure.status is None:
                continue
            attempt = Attempt.begin(cell, store, place)
            if failure is None:
                if not (self._is_measured(cell) and self._is_measured(_baseline(cell))):
                    continue  # only some of the benches were asked for
                attempt.candidate = self._measured(cell, attempt.log)
                attempt.quality_baseline = attempt.speed_baseline = self._measured(_baseline(cell), attempt.log)
            record, raw = assemble(attempt, failure)
            if record.status is not Status.INVALID:
                yield store.write(replace(record, isolation=ISOLATION), raw)

    def close(self) -> None:
        """Remove the samples; records keep what they need of them."""
        self._scratch.remove()

    def _job(self, cell: Cell, stage: Literal["latency", "quality"]) -> Job:
        job, baseline = Job(cell, _folder(cell), stage, self._out(cell, stage)), _baseline(cell)
        if stage == "latency":
            return replace(job, baseline_artifact=_folder(baseline))
        if cell.key == baseline.key:
            return job
        return replace(job, baseline=self._out(baseline, stage), baseline_artifact=_folder(baseline))

    def _out(self, cell: Cell, stage: str) -> Path:
        return self._scratch.path / cell.key / stage

    def _is_measured(self, cell: Cell) -> bool:
        return all((self._out(cell, stage) / samples.JSON_NAME).exists() for stage in STAGES)

    def _failure(self, cell: Cell, failures: Mapping[Path, BaseException]) -> Failure | None:
        for stage in STAGES:
            if (error := failures.get(self._out(cell, stage))) is not None:
                return Failure(status_of(error), public(f"{type(error).__name__}: {error}"), stage)
        return None

    def _measured(self, cell: Cell, log: Path) -> Measured:
        """Return what the benches have left of a cell: one round, in this process."""
        latency, quality = (self._out(cell, stage) for stage in STAGES)
        timing = Process.read(latency, None)
        # This process was started once, for the latency stage: its start-up is on that stage's account.
        timing = replace(timing, seconds=sum(timing.values["stages"].values()))
        scoring = Scoring(quality, Process.read(quality, None))
        return Measured(cell, log, Artifact.read(cell), scoring, (timing,))


def artifact_of(cell: Cell) -> Path:
    """Return the cell's artifact: from the cache, or built in this process, as are its fine-tuned model and its draft.

    Raises Unsupported when a technique refuses the model, and whatever else building raises.
    """
    from squeeze.artifacts import trained
    from squeeze.artifacts.build import build  # torch: seconds
    from squeeze.probes.energy import Meter
    from squeeze.probes.memory import measured

    trained.make(cell.model, cell.runtime)
    if cell.draft is not None:
        artifact_of(cell.draft)
    return keys.made(keys.artifact_key(cell), lambda folder: build(cell, folder, measured, counted=Meter))


def _baseline(cell: Cell) -> Cell:
    return cell.baseline(cell.model["dtype"])


def _folder(cell: Cell) -> Path:
    """Return where the runner keeps the cell's artifact, too."""
    return keys.folder(keys.artifact_key(cell))
