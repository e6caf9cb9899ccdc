"""Measure read bandwidth and matrix-product peaks of this machine: about a second in all.

`python -m squeeze.probes.peaks THREADS` prints them as JSON, for callers that do not import torch.
"""

import json
import sys
import time
from collections.abc import Callable

import torch

from squeeze.records.roofline import Machine

READ_BYTES = 512 * 2**20  # far beyond any last-level cache
SIDE = 2048  # large enough for the blocked kernels, 17 GFLOP a product
SECONDS = 0.2  # spent on each figure; the best call counts, for a limit is what can be reached


def measure(threads: int) -> Machine:
    """Return the peaks of the CPU with that many threads; the process keeps its own number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return Machine(threads, read_bandwidth(), {name: matmul_peak(name) for name in ("float32", "bfloat16", "int8")})
    finally:
        torch.set_num_threads(before)


def read_bandwidth() -> float:
    """Return the bytes/s of reading a buffer that no cache can hold (a vectorised sum of it)."""
    buffer = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    return READ_BYTES / fastest(buffer.sum)


def matmul_peak(dtype: str) -> float:
    """Return the operations/s of a square product; int8 accumulates in int32."""
    shape = (SIDE, SIDE)
    if dtype == "int8":
        left, right = (torch.randint(-127, 128, shape, dtype=torch.int8) for _ in range(2))
        return 2 * SIDE**3 / fastest(lambda: torch._int_mm(left, right))
    left, right = (torch.randn(shape).to(getattr(torch, dtype)) for _ in range(2))
    return 2 * SIDE**3 / fastest(lambda: left @ right)


def fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest call within `SECONDS`, the first (warm-up) call left out."""
    call()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1])).to_json()))
