"""Judge how a process ended, and what that means for its cell: exit -> failure (or none).

A child that fails in Python leaves ``failure.json`` in its output folder; a child that was ended from outside leaves
only its exit code. Both are turned into one status with a one-line reason that names no path and no user; or into none,
where the environment failed: a kill from outside says nothing of a cell.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squeeze.core.disk import is_full_disk
from squeeze.core.errors import PENDING, IntegrityError, TransientError, Unsupported
from squeeze.core.files import write_atomically
from squeeze.records.record import Status
from squeeze.records.sanitize import public
from squeeze.runner.jobs.limits import Limits

REPORT = "failure.json"
REASON_LENGTH = 300
TAIL_LENGTH = 1000
TAIL_LINES = 30
LINE_LENGTH = 200
DECORATION = re.compile(r"[\s^~=_-]*$|Extension modules:")
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|cannot allocate memory", re.IGNORECASE)
MIB = 1024**2
NO_ROOM = PENDING  # exit code of a process that a full disk has ended, where its word may have no room either
KILLS = frozenset({-signal.SIGTERM, -signal.SIGHUP})  # no process ends by these unless somebody sends them


@dataclass(frozen=True)
class Exit:
    """Hold how one process ended.

    code: exit code, negative for the signal that ended it. seconds: wall time of its own work, start and end included.
    bytes: private memory last seen, descendants included. breach: the limit it was ended for ("seconds", "bytes", or
    "stopped": its seconds had passed while somebody had it stopped, by SIGSTOP).
    kernel_kill: the kernel killed a process for want of memory meanwhile; None where the kernel does not say.
    """

    code: int
    seconds: float
    bytes: int = 0
    breach: str = ""
    kernel_kill: bool | None = None

    @property
    def from_outside(self) -> bool:
        """Tell whether somebody killed it: not its own fault, not the kernel for want of memory, not its limits.

        Where the kernel does not say whom it kills, a SIGKILL is taken for the kernel's.
        """
        if self.breach:
            return False
        return self.code in KILLS or (self.code == -signal.SIGKILL and self.kernel_kill is False)


@dataclass(frozen=True)
class Failure:
    """Hold why a cell has no figures. status: the verdict; None where there is none, and the cell stays pending."""

    status: Status | None
    reason: str
    stage: str
    log_tail: str = ""


class StageError(Exception):
    """End the work on one cell; carry the `Failure` that its record will show, if it is a verdict."""

    def __init__(self, failure: Failure):
        super().__init__(failure.reason)
        self.failure = failure


def report(folder: Path, error: BaseException) -> None:
    """Leave word, in a failing child, of the exception that ends it. Raises OSError when the folder is full."""
    words = {"status": status_of(error), "error": type(error).__qualname__, "message": str(error)}
    write_atomically(folder / REPORT, json.dumps(words).encode())


def exit_code(error: BaseException) -> int:
    """Return the exit code of a child that an exception ends."""
    return NO_ROOM if is_full_disk(error) else 1


def status_of(error: BaseException) -> Status | None:
    """Return the status that an exception stands for; None for a fault of the environment, which is no verdict.

    Torch's classes are known by name, so torch need not be there.
    """
    if isinstance(error, TransientError) or is_full_disk(error):
        return None
    if isinstance(error, Unsupported):
        return Status.UNSUPPORTED
    if isinstance(error, IntegrityError):
        return Status.INVALID
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Status.OUT_OF_MEMORY
    if isinstance(error, RuntimeError | OSError) and NO_MEMORY.search(str(error)):
        return Status.OUT_OF_MEMORY
    return Status.CRASHED


def judge(end: Exit, folder: Path, limits: Limits, stage: str) -> Failure | None:
    """Return what the end of a process means: None for success. ``folder``: where it may have left word."""
    if end.code == 0 and not end.breach:
        return None
    status, reason = _verdict(end, _read_report(folder), limits)
    memory = f" (at {end.bytes // MIB} MiB)" if end.bytes else ""
    return Failure(status, public(reason)[:REASON_LENGTH] + memory, stage)


def tail(log: str) -> str:
    """Return the last lines of a log, at most 1,000 characters, each made `public`; decoration is left out."""
    lines = [public(line)[:LINE_LENGTH] for line in log.splitlines()[-TAIL_LINES:] if not DECORATION.match(line)]
    return "\n".join(lines)[-TAIL_LENGTH:]


def _verdict(end: Exit, words: dict[str, Any] | None, limits: Limits) -> tuple[Status | None, str]:
    if end.breach == "stopped":
        return None, f"stopped from outside (SIGSTOP) until its limit of {limits.seconds:g} s had passed; ended"
    if end.breach == "seconds":
        return Status.TIMEOUT, f"still running after the limit of {limits.seconds:g} s; ended"
    if end.breach == "bytes":
        return Status.OUT_OF_MEMORY, f"more private memory than the limit of {limits.bytes // MIB} MiB; ended"
    if words is not None:
        message = str(words["message"]).strip().partition("\n")[0]
        return words["status"], f"{words['error']}: {message}" if message else str(words["error"])
    if end.from_outside:
        return None, f"ended by {_signal_name(-end.code)} from outside, and once more when it was tried again"
    if end.code == -signal.SIGKILL:
        return Status.OUT_OF_MEMORY, "killed by the kernel: the machine ran out of memory"
    if end.code < 0:
        return Status.CRASHED, f"ended by {_signal_name(-end.code)}"
    return Status.CRASHED, f"exit code {end.code}, without a word"


def _read_report(folder: Path) -> dict[str, Any] | None:
    try:
        words = json.loads((folder / REPORT).read_bytes())
        status = None if words["status"] is None else Status(words["status"])
        return {"error": str(words["error"]), "message": str(words["message"]), "status": status}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
