"""Measure the peak memory of a call, from the kernel's own high-water mark.

VmHWM is the largest resident set since it was last reset (writing 5 to /proc/self/clear_refs resets it): it sees a peak
of any length, where a sampler misses short ones, and it is not inherited from a parent, as ru_maxrss is. It counts
mapped file pages too, so RssAnon and RssFile stand beside it. The kernel keeps no peak of RssAnon alone;
`anon_bound` bounds it.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

T = TypeVar("T")

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
LARGE = 1 << 20  # bytes
HELD = 1.15  # times the bytes of weights that a process may keep of loading them: blocks of an allocator are rounded up
HELD_ONCE = 128 << 20  # bytes: what loading imports (bitsandbytes: 45 MB, all else 1), and what an allocator keeps


@dataclass(frozen=True)
class Resident:
    """Hold the resident set in bytes: its peak since the last reset, and its anonymous and file-backed part now."""

    peak: int
    anon: int
    file: int

    @property
    def total(self) -> int:
        """Return the resident set now, in bytes."""
        return self.anon + self.file


@dataclass(frozen=True)
class Usage:
    """Hold one call's memory. before, after: resident set around it; cuda: figures of the device, empty on the CPU.

    source: "VmHWM", or "rss" where the system keeps no peak that can be reset: then the peak is a lower bound, the
    larger of before and after.
    """

    before: Resident
    after: Resident
    source: str
    cuda: dict[str, int]

    @property
    def peak(self) -> int:
        """Return the largest resident set during the call, bytes."""
        return max(self.before.total, self.after.total) if self.source == "rss" else self.after.peak

    @property
    def anon_bound(self) -> int:
        """Return an upper bound of anonymous memory during the call, unless it unmapped files that it mapped again."""
        return self.peak - min(self.before.file, self.after.file)

    def figures(self, stage: str) -> dict[str, Any]:
        """Return sample names and values, such as load_peak_bytes; *_rss_* are those after the call."""
        host = {
            "start_bytes": self.before.total,
            "peak_bytes": self.peak,
            "peak_anon_bound_bytes": self.anon_bound,
            "rss_anon_bytes": self.after.anon,
            "rss_file_bytes": self.after.file,
            "peak_source": self.source,
        }
        return {f"{stage}_{name}": value for name, value in {**host, **self.cuda}.items()}


def measured(call: Callable[[], T], device: str = "cpu") -> tuple[T, Usage]:
    """Return the call's result, and the memory used while it ran.

    Memory that earlier work freed is given back first, so that the figure does not depend on what ran before.
    """
    gc.collect()
    trim_heap()
    cuda_before = _cuda_reset(device)
    source = "VmHWM" if _reset_peak() else "rss"
    before = resident()
    result = call()
    after = resident()
    return result, Usage(before, after, source, _cuda_figures(device, cuda_before))


def kept(usage: Usage) -> int:
    """Return the bytes of anonymous and shared memory that are there now and were not before a call, none of them free.

    So a copy of weights counts wherever it lies, if only a library knows of it; and what the call imported counts too.
    """
    gc.collect()
    trim_heap()
    return resident().anon - usage.before.anon


def mismatches(kept_bytes: int, claimed: int, device: str) -> list[str]:
    """Return what to say where a process kept more of loading than the weights take; nothing where it did not.

    kept_bytes: see ``kept``; claimed: bytes of the weights in memory. On a GPU the host's memory says nothing of them.
    """
    most = HELD * claimed + HELD_ONCE
    if device != "cpu" or kept_bytes <= most:
        return []
    return [f"claimed {claimed:,} bytes in memory, loading kept {kept_bytes:,}, expected {most:,.0f} at the most"]


def resident() -> Resident:
    """Return the resident set of this process; all of it counted as anonymous where the system does not tell."""
    if not STATUS.exists():
        total = psutil.Process().memory_info().rss
        return Resident(total, total, 0)
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    peak, anon, file, shared = (
        int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")
    )
    return Resident(peak, anon + shared, file)


def _reset_peak() -> bool:
    """Set the high-water mark back to the present resident set; return whether that could be done."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def trim_heap() -> None:
    """Have glibc's allocator return its free pages; other allocators keep theirs."""
    _glibc("malloc_trim", 0)


def return_large_blocks() -> None:
    """Have glibc return each freed block of 1 MiB or more at once, from now on in this process.

    Left to itself it raises that size to that of the blocks it sees freed, and small blocks between freed large ones
    keep them resident: hundreds of megabytes where the lengths of inputs differ.
    """
    _glibc("mallopt", M_MMAP_THRESHOLD, LARGE)


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), function):
        getattr(libc, function)(*arguments)


def _cuda_reset(device: str) -> int:
    """Reset torch's CUDA peaks; return the bytes in use on the whole device, by every process."""
    if not device.startswith("cuda"):
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return _cuda_in_use(device)


def _cuda_figures(device: str, before: int) -> dict[str, int]:
    """Return the peaks of allocated (the headline) and reserved bytes, and the growth that the whole device shows."""
    if not device.startswith("cuda"):
        return {}
    torch.cuda.synchronize(device)
    return {
        "cuda_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "cuda_reserved_bytes": torch.cuda.max_memory_reserved(device),
        "cuda_device_bytes": _cuda_in_use(device) - before,
    }


def _cuda_in_use(device: str) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free
