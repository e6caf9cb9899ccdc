"""Start a run's processes, one at a time, each with its job file, log and limits."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Self
from zipfile import BadZipFile, ZipFile

import filelock

from squeeze.core.cache import VARIABLE, cache_root
from squeeze.core.errors import IntegrityError
from squeeze.core.hashing import digest
from squeeze.probes import samples
from squeeze.records.record import Status
from squeeze.records.roofline import Machine
from squeeze.records.sanitize import public
from squeeze.request.cell import Cell
from squeeze.runner.jobs import outcome
from squeeze.runner.jobs.display import Display, LastLine
from squeeze.runner.jobs.job import MACHINE, Job
from squeeze.runner.jobs.launcher import WORKER, Launcher
from squeeze.runner.jobs.limits import Limits
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.runner.results import Process


@dataclass
class Executor:
    """Run jobs, and keep their scratch files, which vanish with it.

    results: the results folder (the worker's own log lies there). command: the worker's command line.
    seconds: wall time of all processes so far.
    """

    results: Path
    display: Display
    command: Sequence[str] = WORKER
    seconds: float = 0.0
    _scratch: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory(prefix="squeeze-"))
    _launcher: Launcher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._scratch.cleanup()

    def folder(self) -> Path:
        """Return a new, empty scratch folder."""
        return Path(mkdtemp(dir=self._scratch.name))

    def run(self, job: Job, log: Path, what: str) -> float:
        """Run one job and return its wall time in seconds, process start included. ``what``: as it is told to people.

        Raises StageError when it ends in any other way than well, SqueezeError when no process can be started.
        """
        path = self.folder() / "job.json"
        path.write_text(json.dumps(job.to_json()))
        limits = Limits(**job.cell.protocol["limits"]["latency" if job.stage == "machine" else job.stage])
        with log.open("ab") as file:
            file.write(f"=== {job.cell.label}: {what}\n".encode())
            start = file.tell()
        said = LastLine(log, start) if job.stage == "build" else None  # reading it would disturb what is measured
        with self.display.process(f"{job.cell.label}: {what}", said):
            end = self._launcher_for(job.cell.runtime).run(path, log, limits)
        self.seconds += end.seconds
        failure = outcome.judge(end, job.out, limits, job.stage)
        if failure is not None:
            raise StageError(replace(failure, log_tail=outcome.tail(_read_from(log, start))))
        return end.seconds

    def measure(self, job: Job, log: Path, what: str) -> Process:
        """Run one measuring job and return what its process left and took.

        Raises StageError as `run` does, and as invalid when the process ended well without leaving sound samples.
        """
        seconds = self.run(job, log, what)
        try:
            process = Process.read(job.out, seconds)
            with ZipFile(job.out / samples.ARRAYS_NAME):  # whole, but for what is in its entries
                return process
        except (OSError, BadZipFile, IntegrityError) as error:
            reason = public(f"the process ended well, but its samples cannot be read: {error}")
            raise StageError(Failure(Status.INVALID, reason, job.stage)) from error

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
            self._launcher = Launcher(self.results / "logs" / "worker.log", variables, command)
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
    measurement. oneDNN keeps 1,024 compiled products, one for each length of a request: hundreds of megabytes where
    requests are not padded.
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
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
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


def _read_from(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
