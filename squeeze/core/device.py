"""What this machine offers, found without importing torch."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def default_device() -> str:
    """``cuda`` when a GPU seems usable, else ``cpu``.

    Seems: an NVIDIA driver is loaded, no empty CUDA_VISIBLE_DEVICES hides its GPUs, and the installed torch is not a
    CPU-only build. Whether torch can really use the GPU shows only when a measuring process starts.
    """
    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if driver and not hidden and not _torch_is_cpu_only() else "cpu"


def usable_threads() -> int:
    """How many CPUs this process may run on (its affinity; all of them where a system knows no affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _torch_is_cpu_only() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True
