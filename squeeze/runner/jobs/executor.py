"""Start a run's processes, each with its job file, log and limits: one at a time, or a group that works in turns."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self
from zipfile import BadZipFile, ZipFile

import filelock

from squeeze.core.cache import VARIABLE, cache_root
from squeeze.core.errors import IntegrityError
from squeeze.core.hashing import digest
from squeeze.core.scratch import Scratch
from squeeze.probes import samples
from squeeze.records.record import Status
from squeeze.records.roofline import Machine
from squeeze.records.sanitize import public
from squeeze.request.cell import Cell
from squeeze.runner import equipment
from squeeze.runner.jobs import outcome
from squeeze.runner.jobs.display import Display, LastLine
from squeeze.runner.jobs.job import MACHINE, Job
from squeeze.runner.jobs.launcher import WORKER, Launcher, Task
from squeeze.runner.jobs.limits import Limits
from squeeze.runner.jobs.outcome import NO_ROOM, Exit, Failure, StageError
from squeeze.runner.jobs.surroundings import Surroundings, full
from squeeze.runner.results import Process

SCRATCH = "squeeze-"  # begins the names of scratch folders
SPINS = "10000"  # turns of libgomp's waiting loop, some tens of microseconds
TELLING = ("build", "training")  # stages that say how far they are
LONGEST_TRAINING = 24 * 3600.0  # seconds: the limit of a fine-tuning that hangs; any other takes what it takes


@dataclass(frozen=True)
class _End:
    """Hold how a job's process ended. start: where in the log it began, in bytes."""

    job: Job
    log: Path
    start: int
    exit: Exit


@dataclass
class Executor:
    """Run jobs, and keep their scratch files, which vanish with it; those of runs that died vanish as it begins.

    A job that was killed from outside is run once more. Whatever runs jobs raises TransientError, no verdict on a
    cell, when a disk is full or what a job stands on was removed.

    results: the results folder (the worker's own log lies there). command: the worker's command line.
    seconds: wall time of all processes so far, each one's own turns.
    """

    results: Path
    display: Display
    command: Sequence[str] = WORKER
    seconds: float = 0.0
    _scratch: Scratch = field(default_factory=lambda: Scratch.make(SCRATCH))
    _launcher: Launcher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._scratch.remove()

    def folder(self) -> Path:
        """Return a new, empty scratch folder."""
        return Path(mkdtemp(dir=self._scratch.path))

    def run(self, job: Job, log: Path, what: str) -> float:
        """Run one job and return its wall time in seconds, process start included. ``what``: as it is told to people.

        Raises StageError when it ends in any other way than well, SqueezeError when no process can be started.
        """
        end = self._alone(job, log, what)
        if end.exit.from_outside:
            _empty(job.out)
            end = self._alone(job, log, f"{what}, once more")
        return _sound(end)

    def measure(self, job: Job, log: Path, what: str) -> Process:
        """Run one measuring job and return what its process left and took.

        Raises StageError as `run` does, and as invalid when the process ended well without leaving sound samples.
        """
        return _left_by(job, self.run(job, log, what))

    def measure_side_by_side(self, jobs: Sequence[tuple[Job, Path]], what: str) -> list[Process | StageError]:
        """Run measuring jobs, each with its log, that work in turns; return what each left, or how it failed.

        One that was killed from outside, with the memory of all to blame perhaps or with a worker that died, is run
        once more by itself. Raises SqueezeError when no process can be started.
        """
        with self.display.process(f"{len(jobs)} models side by side: {what}"):
            ends = self._run(jobs, what)
        return [self._left(job, log, end, what) for (job, log), end in zip(jobs, ends, strict=True)]

    def _left(self, job: Job, log: Path, end: _End, what: str) -> Process | StageError:
        try:
            if end.exit.from_outside or (end.exit.code == -signal.SIGKILL and not end.exit.breach):
                fresh = replace(job, out=self.folder())
                return _left_by(fresh, _sound(self._alone(fresh, log, f"{what}, once more by itself")))
            return _left_by(job, _sound(end))
        except StageError as failed:
            return failed

    def _alone(self, job: Job, log: Path, what: str) -> _End:
        said = LastLine(log, _size(log)) if job.stage in TELLING else None  # reading would disturb what is measured
        with self.display.process(f"{self.display.label(job.cell)}: {what}", said):
            [end] = self._run([(job, log)], what)
        return end

    def _run(self, jobs: Sequence[tuple[Job, Path]], what: str) -> list[_End]:
        """Run a group of jobs of one device; a group of one has the machine to itself."""
        surroundings = Surroundings.of([job for job, _ in jobs])
        tasks, begun = [], []
        for job, log in jobs:
            path = self.folder() / "job.json"
            path.write_text(json.dumps(job.to_json()))
            with log.open("ab") as file:
                file.write(f"=== {job.cell.label}: {what}\n".encode())
                begun.append(file.tell())
            tasks.append(Task(path, log, _limits(job), equipment.interpreter(job)))
        exits = self._launcher_for(jobs[0][0].cell.runtime).run(tasks)
        self.seconds += sum(end.seconds for end in exits)
        if any(end.code or end.breach for end in exits):
            surroundings.check()
        if any(end.code == NO_ROOM for end in exits):
            raise full()
        return [_End(*job, start, end) for job, start, end in zip(jobs, begun, exits, strict=True)]

    def measure_machine(self, cell: Cell, log: Path) -> Machine | None:
        """Return the read bandwidth and matrix-product peaks of the CPU with the cell's threads.

        None for another device, and where measuring them fails: no cell fails for want of them.
        """
        if cell.runtime["device"] != "cpu":
            return None
        job = Job(cell, self.folder(), "machine", self.folder())
        try:
            self.run(job, log, "physical limits")
            return Machine.from_json(json.loads((job.out / MACHINE).read_bytes()))
        except (OSError, ValueError, TypeError, StageError):
            return None

    def _launcher_for(self, runtime: Mapping[str, Any]) -> Launcher:
        """Return the launcher whose worker suits a runtime; a worker for another one is ended first."""
        command, variables = worker_command(self.command, runtime), worker_variables(runtime)
        if self._launcher is None or (self._launcher.command, self._launcher.variables) != (command, variables):
            self.close()
            self._launcher = Launcher(self.results / "logs" / "worker.log", variables, command, self.display.say)
        return self._launcher

    def close(self) -> None:
        """End the worker, and with it a job that runs."""
        if self._launcher is not None:
            self._launcher.close()


def worker_command(command: Sequence[str], runtime: Mapping[str, Any]) -> Sequence[str]:
    """Return the worker's command line; it forks where that is safe: on Linux, never where CUDA may have started."""
    forks = sys.platform == "linux" and str(runtime["device"]) == "cpu"
    return (*command, "--fork") if forks else command


def worker_variables(runtime: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables of all jobs of a runtime.

    The cache is the runner's. What a job needs of the hub has been fetched before it starts, so it never asks for
    anything there. Plugins of pytest that happen to be installed take half a second each to load, and are no part of a
    measurement. oneDNN keeps the compiled products that it keeps for everyone, 1,024 shapes: with fewer, a model whose
    blocks differ in their sizes would compile all of them anew for each token. Threads of OpenMP that wait spin for
    microseconds, then sleep: by default they spin so long that whoever has the next turn loses a core to them; that
    sleep at once (OMP_WAIT_POLICY=PASSIVE) makes tokens 1.6 to 1.9 times as long.
    """
    threads = {"OMP_NUM_THREADS": str(runtime["threads"])} if runtime.get("threads") else {}
    return {
        **threads,
        VARIABLE: str(cache_root()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONUNBUFFERED": "1",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS),
    }


@contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Hold a device while measuring on it, so that two runs on one machine do not time each other."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    machine = digest(socket.gethostname())[:8]  # a cache may be shared by machines, a device is not
    lock = filelock.FileLock(folder / f"{machine}-{device.replace(':', '-')}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting for another run that measures on {device} ...", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _limits(job: Job) -> Limits:
    limits = job.cell.protocol["limits"]
    if job.stage == "training":
        return Limits(LONGEST_TRAINING, limits["build"]["bytes"])
    return Limits(**limits["latency" if job.stage == "machine" else job.stage])


def _sound(end: _End) -> float:
    """Return the seconds of a process that ended well. Raises StageError for any other."""
    failure = outcome.judge(end.exit, end.job.out, _limits(end.job), end.job.stage)
    if failure is not None:
        raise StageError(replace(failure, log_tail=outcome.tail(_read_from(end.log, end.start))))
    return end.exit.seconds


def _left_by(job: Job, seconds: float) -> Process:
    """Return what a measuring process that ended well has left. Raises StageError where that is no sound samples."""
    try:
        process = Process.read(job.out, seconds)
        with ZipFile(job.out / samples.ARRAYS_NAME):  # whole, but for what is in its entries
            return process
    except (OSError, BadZipFile, IntegrityError) as error:
        reason = public(f"the process ended well, but its samples cannot be read: {error}")
        raise StageError(Failure(Status.INVALID, reason, job.stage)) from error


def _empty(folder: Path) -> None:
    """Remove what a process that was killed has left in its output folder (of a build: its half of an artifact)."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _read_from(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
