"""Start the worker, hand it one group of jobs at a time, and outlive it when it dies."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from squeeze.core.errors import SqueezeError, TransientError
from squeeze.core.interpreters import environment_with
from squeeze.runner.jobs.limits import Limits, is_stopped, kernel_kills, killed_since
from squeeze.runner.jobs.outcome import Exit

WORKER = (sys.executable, "-m", "squeeze.runner.jobs.worker")
STARTS = 5  # of a worker that something kills before it is ready
PATIENCE = 5.0  # seconds that a worker has for ending its job before it is killed
LOOK_EVERY = 5.0  # seconds between two looks whether somebody has stopped a process


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Task:
    """Name a job for the worker: its job file, the log that its output is appended to, its limits.

    interpreter: that of an engine's own environment, which the job's process is started with; None: the worker's.
    """

    job: Path
    log: Path
    limits: Limits
    interpreter: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, as the worker's requests have it."""
        interpreter = self.interpreter and str(self.interpreter)
        return {"job": str(self.job), "log": str(self.log), "limits": asdict(self.limits), "interpreter": interpreter}


@dataclass
class Launcher:
    """Keep one worker process, started at the first job, started again should it die.

    command: the worker's command line. variables: environment variables of the worker and its jobs, over the runner's
    own. log: file that receives what the worker itself writes (warnings of the libraries it imports). warn: hears, in
    one line, of a worker or a job that somebody has stopped (SIGSTOP).
    """

    log: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = WORKER
    warn: Callable[[str], None] = _print
    _worker: subprocess.Popen[bytes] | None = None
    _heard: bytes = b""
    _stopped: set[int] = field(default_factory=set)

    def run(self, tasks: Sequence[Task]) -> list[Exit]:
        """Run a group of jobs, which work in turns, and return how each ended.

        Blocks without using the processor. A worker that dies takes its jobs along: that is an exit, too; so does one
        that is stopped until the limits of all its jobs have passed. Raises SqueezeError when no worker can be started.
        """
        started, kills = time.monotonic(), kernel_kills()
        worker = self._worker or self._start()
        deadline = time.monotonic() + sum(task.limits.seconds for task in tasks) + PATIENCE
        groups: list[int] = []
        ends: dict[int, Exit] = {}
        try:
            self._send(worker, {"jobs": [task.to_json() for task in tasks]})
            while len(ends) < len(tasks):
                message = self._receive(worker, "started", "ended", groups=groups, deadline=deadline)
                if message["event"] == "started":
                    groups.append(message["pid"])
                else:
                    ends[message["place"]] = Exit(**message["exit"])
        except (OSError, EOFError):
            self._worker = None
            code = _clear(worker, groups)
            lost = Exit(code, time.monotonic() - started, kernel_kill=killed_since(kills))
            ends = {place: ends.get(place, lost) for place in range(len(tasks))}
        except BaseException:
            self.close()
            raise
        return [ends[place] for place in range(len(tasks))]

    def close(self) -> None:
        """End the worker and with it the running jobs."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        assert worker.stdin is not None
        worker.stdin.close()
        _clear(worker, patience=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        """Return a worker that is ready; one that is killed meanwhile is started again, a few times."""
        for _ in range(STARTS):
            worker = self._worker = self._spawn()
            try:
                self._receive(worker, "ready")
                return worker
            except (OSError, EOFError):
                self._worker = None
                if (code := _clear(worker)) >= 0:
                    raise SqueezeError(f"the worker did not start (exit code {code}); its log is {self.log}") from None
        raise TransientError(
            f"the worker was killed from outside (signal {-code}) each of {STARTS} times that it was started; see who "
            "does that, then `squeeze resume` measures what is missing"
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._heard = b""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment_with(self.variables),
                start_new_session=True,  # Ctrl-C is for the runner, which ends the job in good order
            )

    def _send(self, worker: subprocess.Popen[bytes], message: Mapping[str, Any]) -> None:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(message).encode() + b"\n")
        worker.stdin.flush()

    def _receive(
        self, worker: subprocess.Popen[bytes], *events: str, groups: Sequence[int] = (), deadline: float = math.inf
    ) -> dict[str, Any]:
        """Return the worker's next message; meanwhile look after it and the jobs that lead ``groups``."""
        while b"\n" not in self._heard:
            if not (piece := self._read(worker, groups, deadline)):
                raise EOFError(f"the worker ended before it said {' or '.join(events)}")
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if message["event"] not in events:
            raise EOFError(f"the worker said {message['event']!r}, expected {' or '.join(events)}")
        return message

    def _read(self, worker: subprocess.Popen[bytes], groups: Sequence[int], deadline: float) -> bytes:
        assert worker.stdout is not None
        while not select.select([worker.stdout], [], [], LOOK_EVERY)[0]:
            for pid in (worker.pid, *groups):
                self._look_after(pid, "worker" if pid == worker.pid else "job")
            if time.monotonic() > deadline and is_stopped(worker.pid):  # nobody else keeps the limits of its jobs
                worker.kill()
        return os.read(worker.stdout.fileno(), 65536)

    def _look_after(self, pid: int, what: str) -> None:
        """Say once that a process is stopped; and again when it is stopped anew."""
        stopped = is_stopped(pid)
        if stopped and pid not in self._stopped:
            self.warn(f"the {what} (process {pid}) was stopped from outside; `kill -CONT {pid}` lets it go on")
        (self._stopped.add if stopped else self._stopped.discard)(pid)


def _clear(worker: subprocess.Popen[bytes], groups: Iterable[int] = (), patience: float = 1.0) -> int:
    """End what is left of a worker and of the process groups of its jobs, and return the worker's exit code."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(patience)  # it has closed its output, or been told to leave: let it show its own exit code
    worker.kill()
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):  # what was not sent yet is of no use
            pipe and pipe.close()
    return worker.wait()
