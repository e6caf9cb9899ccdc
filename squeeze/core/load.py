"""Tell whether other programs compete for the processors that a measurement is about to use. Imports no torch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK = 0.5  # seconds
USED = 0.25  # processors that a quiet machine's other programs use at most: its own housekeeping
WAITED = 0.10  # of the last ten seconds, in which some task waited for a processor
PRESSURE = Path("/proc/pressure/cpu")


@dataclass(frozen=True)
class Load:
    """Hold what others do on this machine.

    used: processors, of those ``available`` to this process, that others used while it looked. waited: share of the
    last ten seconds in which some task waited for a processor (`some avg10` of the kernel's pressure stall
    information); None where the system does not say. average: the load average of the last minute.
    """

    used: float
    available: int
    waited: float | None
    average: float

    @property
    def is_busy(self) -> bool:
        """Tell whether what is timed now would be disturbed."""
        return self.used > USED or (self.waited or 0.0) > WAITED

    def __str__(self) -> str:
        waited = "" if self.waited is None else f", some task waited in {self.waited:.0%} of the last 10 s"
        used = f"other programs use {self.used:.1f} of {self.available} processors"
        return f"{used} (load {self.average:.1f}{waited})"


def look(seconds: float = LOOK) -> Load:
    """Look for so long what other programs do; this one does nothing meanwhile."""
    before, own = _busy(), time.process_time()
    time.sleep(seconds)
    used = (_busy() - before - (time.process_time() - own)) / seconds
    return Load(max(0.0, used), len(_available()), _waited(), psutil.getloadavg()[0])


def _available() -> list[int]:
    """Return the numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _busy() -> float:
    """Return the seconds that the available processors have worked so far, for whomever."""
    times = psutil.cpu_times(percpu=True)
    idle = ("idle", "iowait", "guest", "guest_nice", "steal")  # a guest's time is in its user's, too
    return float(
        sum(value for number in _available() for name, value in times[number]._asdict().items() if name not in idle)
    )


def _waited() -> float | None:
    try:
        fields = dict(part.split("=") for part in PRESSURE.read_text().splitlines()[0].split()[1:])
        return float(fields["avg10"]) / 100
    except (OSError, ValueError, KeyError, IndexError):
        return None
