"""Take a model through the stages whose results do not depend on the moment: build and quality.

They are kept in the cache under what they depend on. Timing is in `squeeze.runner.timing`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from squeeze.artifacts import keys
from squeeze.core.cache import sealed
from squeeze.core.disk import is_full_disk
from squeeze.core.errors import IntegrityError, SqueezeError, TransientError
from squeeze.core.hashing import digest, sha256
from squeeze.core.paths import benches
from squeeze.records.record import Status
from squeeze.records.sanitize import public
from squeeze.request.cell import Cell
from squeeze.runner import equipment, fine_tuning
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.runner.results import Artifact, Measured, Process, Scoring
from squeeze.runtimes import contract as runtimes
from squeeze.sources import corpora, overlap, prompts, sentiment, task_data, tasks, trained
from squeeze.sources import fetch as assets

# Of the protocol, what the quality stage reads.
ASKED = ("perplexity", "perplexity_ood", "tasks", "items", "generations", "token_budget", "seed")
SCORING = (
    *("squeeze.probes.quality", "squeeze.probes.engine_quality", "squeeze.probes.parity"),
    *("squeeze.probes.divergence", "squeeze.sources.questions"),
)
CLASSIFYING = ("squeeze.probes.classification", "squeeze.probes.metrics.accuracy.accuracy")


def build(shop: Executor, cell: Cell, log: Path) -> Artifact:
    """Return the cell's artifact: from the cache, or built.

    One that was built in the open, by ``pytest benches``, is built anew: nothing was withheld from it. The artifact of
    its draft is built before, in a process of its own, and kept like any other.
    Raises StageError when an environment that the cell wants cannot be made, the model not be fetched or fine-tuned, or
    the build does not end well.
    """
    equip(shop, cell)
    fetch(cell)
    fine_tuning.see_to(shop, cell, log)
    seconds = 0.0 if cell.draft is None else build(shop, cell.draft, log).seconds

    def make(folder: Path) -> None:
        nonlocal seconds
        seconds += shop.run(Job(cell, folder, "build", folder.parent), log, "build")

    key = keys.artifact_key(cell)
    forget_if_built_in_the_open(keys.folder(key))
    keys.made(key, make)
    return Artifact.read(cell, seconds)


def equip(shop: Executor, cell: Cell) -> None:
    """Make the environments that a cell's engine and its recipe want, unless they are there.

    Raises StageError, as unsupported, when one cannot be made, and when the engine's is not for the cell's device.
    """
    try:
        equipment.check_device(cell)
        for environment in equipment.wanted(cell):
            if environment.existing() is None:
                with shop.display.process(f"{shop.display.label(cell)}: environment of {environment.name}"):
                    environment.made()
    except TransientError:
        raise  # no further cell would fare better
    except SqueezeError as error:
        raise StageError(Failure(Status.UNSUPPORTED, public(str(error)), "environment")) from error


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
    """Return the sha256 of all that a quality depends on: both artifacts, what is asked, what computes it, on what.

    Of questions and texts the content counts, as it lies here now.
    """
    protocol, bench = subject.cell.protocol, benches() / "test_quality.py"
    scoring = CLASSIFYING if subject.cell.is_classifier else SCORING
    return digest(
        {
            "artifacts": [[each.artifact.key, each.artifact.hash] for each in (subject, baseline) if each],
            "protocol": {name: protocol[name] for name in ASKED if name in protocol},
            "tasks": tasks.content_hash(),
            "data": task_data.hashes(_tasks(subject.cell), _texts(subject.cell)),
            "runtime": subject.cell.runtime_identity,
            "code": [keys.code_version((*scoring, runtimes.module(subject.cell.runtime))), sha256(bench)],
            "libraries": keys.library_versions(scoring),
            **equipment.placed({}, subject.cell),
        }
    )


def fetch(cell: Cell) -> None:
    """Fetch model, texts and questions here, where progress shows, no limit runs and no device is held.

    Raises StageError, as invalid for a cell that is calibrated on what it is scored on; TransientError when the disk is
    full.
    """
    try:
        start = trained.base(cell.model)
        if not str(start["source"]).startswith("random:"):
            assets.fetch(start)
        for corpus in _trained_on(cell):
            corpora.text(corpus)
            if corpus == sentiment.CORPUS:
                sentiment.sentences("train")
        task_data.hashes(_tasks(cell), _texts(cell))
        if cell.drafts:
            prompts.fetch()
        check_calibration(cell)
    except TransientError as error:
        if is_full_disk(error):
            raise  # no further cell would fare better
        raise StageError(Failure(None, public(str(error)), "fetch")) from error
    except SqueezeError as error:
        status = Status.INVALID if isinstance(error, IntegrityError) else Status.CRASHED
        raise StageError(Failure(status, public(str(error)), "fetch")) from error


def forget_if_built_in_the_open(artifact: Path) -> None:
    """Remove an artifact from the cache from whose build nothing was withheld: an official run builds it anew."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there is none, or it is damaged and made anew
        if json.loads((artifact / keys.BUILD_INFO).read_bytes()).get(keys.WITHHELD) is False:
            shutil.rmtree(artifact.parent)


def check_calibration(cell: Cell) -> None:
    """Raise IntegrityError for a cell that is calibrated on what it is scored on (``sources.overlap``)."""
    overlap.check(cell.calibration, cell.protocol, asked=_tasks(cell))


def _trained_on(cell: Cell) -> list[str]:
    """Return the corpora that a cell is calibrated on, and that its model is fine-tuned on here."""
    return [part["corpus"] for part in (cell.calibration, cell.model.get("fine_tuning")) if part]


def _texts(cell: Cell) -> list[str]:
    """Return the corpora that a cell's quality is scored on."""
    return [part["corpus"] for name in ("perplexity", "perplexity_ood") if (part := cell.protocol.get(name))]


def _tasks(cell: Cell) -> list[str]:
    """Return the tasks that a cell's model is asked."""
    return [] if cell.model["kind"] in ("encoder", "vision_language") else list(cell.protocol["tasks"])
