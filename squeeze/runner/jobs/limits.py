"""Keep a stage inside its bounds of wall time and memory, and let its end take every descendant along.

Memory is watched as private memory (anonymous, shared and swapped pages), summed over the process and its
descendants: pages of mapped files can be dropped by the kernel and do not endanger the machine. A resource limit at
twice the bound stops the single huge allocation that a watch would see too late.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE = 2.0  # seconds between SIGTERM and SIGKILL
LOOK_EVERY = 5.0  # seconds between two looks for descendants: each reads of every process of the machine
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PRIVATE = ("RssAnon:", "RssShmem:", "VmSwap:")


@dataclass(frozen=True)
class Limits:
    """Bound one stage: wall time in seconds, private memory in bytes."""

    seconds: float
    bytes: int


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, which started it, ends in whatever way (Linux)."""
    _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none escapes `end_descendants` (Linux)."""
    _control_process(PR_SET_CHILD_SUBREAPER, 1)


def confine(limits: Limits) -> None:
    """Bound this process: no core dumps, the first to go when the machine runs out of memory, memory limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text("1000")
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        ceiling = 2 * limits.bytes if hard == resource.RLIM_INFINITY else min(2 * limits.bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (ceiling, hard))


@dataclass
class Watch:
    """Watch the private memory of process ``pid`` and its descendants, without disturbing what is timed meanwhile.

    The processes that are known are asked each time, which costs microseconds. Few kernels are built with a list of a
    process's children: new ones are found by reading of every process, which is done every ``LOOK_EVERY`` seconds.
    """

    pid: int
    clock: Callable[[], float] = time.monotonic
    _family: Sequence[psutil.Process] = ()
    _looked: float = -math.inf

    def private_bytes(self) -> int:
        """Return private memory in bytes of all that are known; those that are gone count nothing."""
        if self.clock() - self._looked >= LOOK_EVERY:
            self._family, self._looked = tuple(_family(self.pid)), self.clock()
        return sum(_private_bytes(process) for process in self._family)


def end_group(pid: int) -> int:
    """End the process group that child ``pid`` leads, asking first; return its exit code (negative: signal)."""
    _signal_group(pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while (code := exit_code(pid)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    _signal_group(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if code is None else code


def exit_code(pid: int) -> int | None:
    """Return the exit code of child ``pid`` (negative: the signal that ended it), or None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def is_stopped(pid: int) -> bool:
    """Tell whether somebody has stopped a process (SIGSTOP): it does nothing, and is there."""
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def end_descendants(group: int, spare: Collection[int] = ()) -> None:
    """Kill and reap whatever a finished job left behind: its process group ``group`` and adopted orphans.

    spare: children of this process, which go on with their descendants.
    """
    _signal_group(group, signal.SIGKILL)
    while strays := [child for child in psutil.Process().children() if child.pid not in spare]:
        for stray in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (*stray.children(recursive=True), stray):
                    _kill(process)
        for stray in strays:  # whose children, killed too, are this process's from now on
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stray.pid, 0)


def killed_since(kills: int | None) -> bool | None:
    """Tell whether the kernel has killed a process for want of memory since ``kernel_kills()`` gave ``kills``."""
    now = kernel_kills()
    return None if kills is None or now is None else now > kills


def kernel_kills() -> int | None:
    """Count the processes that the kernel has killed for want of memory so far; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _family(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def _private_bytes(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(PRIVATE))
    except OSError:  # it is gone, or the system has no /proc
        with contextlib.suppress(psutil.Error):
            return int(process.memory_info().rss)
        return 0


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _control_process(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
