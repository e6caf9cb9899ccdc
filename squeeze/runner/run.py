"""Turn cells into records: start processes and keep their time and memory in bounds. Never imports torch.

Cells that can share a baseline are worked on in blocks. For each block: build what the cache lacks, score quality once
per artifact, find which dtype of the uncompressed model is the one to beat, then time fresh processes in rounds.
Whatever happens to one cell ends in its record and leaves the others alone. What happens to the environment is no
verdict on a cell, which then stays pending, without a record.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from squeeze.core import environment
from squeeze.core.errors import PENDING
from squeeze.records.roofline import Machine
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.request.labels import Labelled, distinct
from squeeze.runner import plan, rounds, stages, timing
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.runner.baselines import Baselines, of_baseline
from squeeze.runner.claims import Claims, names
from squeeze.runner.jobs.display import Display
from squeeze.runner.jobs.executor import Executor, device_lock
from squeeze.runner.jobs.launcher import WORKER
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.runner.jobs.surroundings import explained
from squeeze.runner.quiet import see_to_quiet
from squeeze.runner.results import Measured, Process, Scoring

INTERRUPTED = 130
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGINT too: a shell's background jobs start deaf to it


def run(
    cells: Sequence[Cell],
    results: Path,
    *,
    resume: bool = True,
    retry: bool = False,
    quiet: float | None = None,
    command: Sequence[str] = WORKER,
) -> int:
    """Measure the cells; each ends in one record below ``results``, made by this run or by another at the same time.

    resume: pass over the cells that have a record; retry: but not over those whose record is of a failure.
    quiet: minutes to wait until no other program uses the processors; None to warn of them. command: how a worker is
    started. Returns 0; 75 when cells are left pending, which a fault of the environment kept from being measured; 130
    when it was interrupted. Raises SqueezeError when the results folder or the cache cannot be written to, before any
    work, and when others are still at work after ``quiet`` minutes; TransientError, with every record so far in place,
    when a disk fills up or the cache is removed.
    """
    store = RecordStore(results)
    store.prepare()
    place, known = environment.describe(), names(store.folder)
    wanted = plan.pending(cells, store.records() if resume else (), place, retry=retry)
    if not wanted:
        print(f"nothing to do: all {len(cells)} cells have their record in {results}", file=sys.stderr)
        return 0
    see_to_quiet(quiet)
    plan.save(wanted, results)
    rounds_each = max(cell.protocol["rounds"] for cell in wanted)
    labels = dict(zip([cell.key for cell in wanted], distinct([Labelled.of(cell) for cell in wanted]), strict=True))
    display = Display(labels, {"build": 1, "quality": 1, "latency": rounds_each})
    try:
        with (
            _ending_as_interrupts(),
            explained(results),
            display,
            Executor(results, display, command) as shop,
            Claims(store, place, display, known) as claims,
        ):
            work = _Run(store, shop, place, Baselines(shop, store))
            for block in claims.blocks(wanted):
                work.measure(block)
    except KeyboardInterrupt:
        display.say(f"interrupted: {display.done} of {len(wanted)} cells measured; `squeeze resume` measures the rest")
        return INTERRUPTED
    if display.left:
        display.say(f"{display.left} of {len(wanted)} cells are pending: `squeeze resume` measures them")
    return PENDING if display.left else 0


@dataclass
class _Run:
    """Take a run through its cells."""

    store: RecordStore
    shop: Executor
    place: Mapping[str, Any]
    baselines: Baselines
    machines: dict[int, Machine | None] = field(default_factory=dict)

    def measure(self, cells: Sequence[Cell]) -> None:
        """Measure the cells of one block and write their records."""
        attempts = [Attempt.begin(cell, self.store, self.place) for cell in cells]
        attempts = self._each("build", attempts, self._build)
        with device_lock(cells[0].runtime["device"]):
            attempts = self._each("quality", attempts, self._score)
            attempts = self._time(attempts)
        for attempt in attempts:
            self._finish(attempt)

    def _each(self, stage: str, attempts: Sequence[Attempt], work: Callable[[Attempt], None]) -> list[Attempt]:
        """Do the work of a stage for each attempt; return those for which it went well: the others get their record."""
        sound = []
        for attempt in attempts:
            try:
                work(attempt)
            except StageError as failed:
                self._finish(attempt, failed.failure)
            else:
                self.shop.display.step(attempt.cell.key, stage)
                sound.append(attempt)
        return sound

    def _build(self, attempt: Attempt) -> None:
        artifact = stages.build(self.shop, attempt.cell, attempt.log)
        attempt.candidate = Measured(attempt.cell, attempt.log, artifact)
        with self._on_account_of(attempt):
            self.baselines.built(attempt.cell, artifact.dtype)
            self.baselines.rivals(attempt.cell, attempt.beside)

    def _score(self, attempt: Attempt) -> None:
        candidate = attempt.built
        with self._on_account_of(attempt):
            baseline = attempt.quality_baseline = self.baselines.scored(attempt.cell, candidate.artifact.dtype)
        if candidate.artifact.key == baseline.artifact.key and attempt.cell.is_eager:  # it is the baseline
            scoring = Scoring(baseline.quality)
        else:
            scoring = stages.score(self.shop, candidate, baseline)
        attempt.candidate = replace(candidate, scoring=scoring)

    def _time(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Time the attempts of a block, as many at once as memory holds; return those that went well."""
        if not attempts:
            return []
        try:
            with self._on_account_of(attempts[0]):
                baseline = self.baselines.fastest(attempts[0].cell, attempts[0].beside)
        except StageError as failed:
            return self._give_up(attempts, failed)
        needs = [timing.need(member) for member in (baseline, *(attempt.built for attempt in attempts))]
        groups = rounds.companies(needs, psutil.virtual_memory().available)
        return [one for group in groups for one in self._time_group(baseline, [attempts[at - 1] for at in group])]

    def _time_group(self, baseline: Measured, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Time attempts that share a baseline process in each round; return those that went well."""
        alive = dict(enumerate(attempts, start=1))
        times: list[Process] = []
        try:
            for position, result in timing.time_rounds(self.shop, [baseline, *(one.built for one in attempts)]):
                if position == 0:
                    assert isinstance(result, Process)
                    times.append(result)
                elif isinstance(result, Failure):
                    self._finish(alive.pop(position), result)
                elif isinstance(result, str):
                    alive[position].rounds_ended = result
                else:
                    alive[position].candidate = _timed(alive[position].built, result)
                    self.shop.display.step(alive[position].cell.key, "latency")
        except StageError as failed:
            return self._give_up(list(alive.values()), of_baseline(failed))
        for attempt in alive.values():
            attempt.machine = self._machine(attempt)
            attempt.speed_baseline = replace(baseline, timings=tuple(times[: len(attempt.built.timings)]))
            attempt.baseline_seconds += sum(process.seconds or 0.0 for process in times) / len(alive)
        return list(alive.values())

    def _give_up(self, attempts: Sequence[Attempt], failed: StageError) -> list[Attempt]:
        """Write the records of attempts whose baseline failed; none goes on."""
        for attempt in attempts:
            self._finish(attempt, failed.failure)
        return []

    def _machine(self, attempt: Attempt) -> Machine | None:
        """Return the physical limits of this machine with the cell's threads, measured once per run."""
        threads = attempt.cell.runtime["threads"]
        if threads not in self.machines:
            self.machines[threads] = self.shop.measure_machine(attempt.cell, attempt.log)
        return self.machines[threads]

    def _finish(self, attempt: Attempt, failure: Failure | None = None) -> None:
        """Write the record of an attempt, unless it failed in a way that is no verdict."""
        if failure is not None and failure.status is None:
            self.shop.display.leave(attempt.cell, f"{failure.reason} (in {failure.stage})")
            return
        record = self.store.write(*assemble(attempt, failure))
        self.shop.display.finish(attempt.cell, record)

    @contextmanager
    def _on_account_of(self, attempt: Attempt) -> Iterator[None]:
        """Charge the processes of baselines that are started meanwhile to an attempt."""
        before = self.shop.seconds
        yield
        attempt.baseline_seconds += self.shop.seconds - before


def _timed(member: Measured, process: Process) -> Measured:
    return replace(member, timings=(*member.timings, process))


@contextmanager
def _ending_as_interrupts() -> Iterator[None]:
    """Let Ctrl-C, a request to end (SIGTERM) and a closed terminal (SIGHUP) all end the run in the same good order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
