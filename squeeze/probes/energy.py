"""Count the energy that this machine's own counters saw pass: RAPL of the processor packages, NVML of a CUDA device.

RAPL is read from Linux's powercap files, which most systems let only root read; NVML through nvidia-ml-py (the extra
``energy``). Both count the whole package or board, whoever uses it: on a busy machine the figure is an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"  # AMD's processors, too, are found under this name

Counter = Callable[[], float]  # joules since the call before


class Meter:
    """Count the energy between each `start` and the `stop` after it; what passes meanwhile is others' work."""

    def __init__(self, device: str):
        """Find the counters: on CUDA the device's alone, else those of all processor packages."""
        self._counters = tuple(_gpu(device) if device.startswith("cuda") else _packages())
        self._runs = False
        self.joules: float | None = 0.0 if self._counters else None

    def start(self) -> None:
        """Begin to count."""
        self._read()
        self._runs = True

    def stop(self) -> None:
        """Add the joules since `start`; without one, nothing."""
        spent = self._read()
        if self._runs and self.joules is not None:
            self.joules += spent
        self._runs = False

    def _read(self) -> float:
        return sum(counter() for counter in self._counters)


def _packages() -> Iterator[Counter]:
    """Yield one counter for each package whose file may be read."""
    for zone in sorted(POWERCAP.glob(PACKAGES)):
        if zone.name.count(":") == 1:  # the package; its parts (core, dram) are in it
            try:
                yield _package(zone)
            except OSError:
                continue


def _package(zone: Path) -> Counter:
    """Return a counter of microjoules that wrap at the zone's range. Raises OSError when they may not be read."""
    energy = zone / "energy_uj"
    span = int((zone / "max_energy_range_uj").read_text()) + 1
    before = int(energy.read_text())

    def joules() -> float:
        nonlocal before
        now = int(energy.read_text())
        passed, before = (now - before) % span, now
        return passed / 1e6

    return joules


def _gpu(device: str) -> Iterator[Counter]:
    """Yield a counter of millijoules since the driver was loaded (Volta and later); nothing without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return

    def joules() -> float:
        nonlocal before
        now = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        passed, before = now - before, now
        return float(passed) / 1e3

    yield joules
