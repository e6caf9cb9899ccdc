"""Take turns with the processes that are measured side by side, and keep what pressed the machine meanwhile.

A process that is measured alone has no gate: its turns follow each other at once.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

READY = b"?"
PRESSURE = Path("/proc/pressure/cpu")
STATISTICS = Path("/proc/stat")
QUEUE = Path("/proc/self/schedstat")  # of this process's first thread: nanoseconds that it ran, and that it waited to
STEAL = 8  # field of the first line of /proc/stat, in clock ticks


@dataclass
class Turns:
    """Keep a process to its turns.

    gate: descriptor on which the runner's conductor gives turns (squeeze.runner.jobs.conductor), None without one.
    waited: seconds spent waiting so far.
    """

    gate: int | None = None
    waited: float = 0.0

    @property
    def interleaved(self) -> bool:
        """Tell whether others work between this process's turns."""
        return self.gate is not None

    def next(self) -> None:
        """End the turn that this process has, and wait for its next one. Leaves the process when nobody gives any."""
        if self.gate is None:
            return
        start = time.perf_counter()
        os.write(self.gate, READY)
        if not os.read(self.gate, 1):
            raise SystemExit("the conductor of this measurement is gone")
        self.waited += time.perf_counter() - start

    def clock(self) -> float:
        """Return seconds of this process's own time: it stands still while others have their turn."""
        return time.perf_counter() - self.waited


def pressure() -> tuple[float, float, float]:
    """Return the time, the seconds of processor time that a hypervisor took, and those in which some task waited.

    All three count from moments of their own, so only differences mean anything; NaN where the system does not say
    (`steal` of proc(5); `some total` of the kernel's pressure stall information, or without it how long this process
    itself has waited, by its `schedstat`).
    """
    return time.monotonic(), _steal(), _stalled()


def _steal() -> float:
    try:
        with STATISTICS.open() as file:
            return int(file.readline().split()[STEAL]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return float("nan")


def _stalled() -> float:
    try:
        with PRESSURE.open() as file:
            return int(file.readline().rpartition("=")[2]) / 1e6
    except (OSError, ValueError):
        return _queued()


def _queued() -> float:
    try:
        with QUEUE.open() as file:
            return int(file.readline().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return float("nan")
