"""Measure from which sparsity on a sparse product is faster than a dense one on this CPU: sets ``csr.LEAST_SPARSITY``.

Layers of a sparsity each, their zeros at random places, are run beside the same ones dense, in turns. There are so many
copies of a layer that caches cannot hold them for a single row of inputs, as in a model that decodes. Printed are dense
time over sparse time, above 1 where zeros gain, with the 95 % interval over rounds.

    python -m scripts.sparse_kernels --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

from squeeze.layers.csr import CSR
from squeeze.records.record import Estimate
from squeeze.records.statistics import ratio

SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536), (2048, 2048))  # of SmolLM2-135M's layers, and a wider one
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
ROWS = (1, 128)
DTYPES = ("float32", "bfloat16")
FOOTPRINT = 128e6  # bytes of all dense copies that one row of inputs goes through
PASSES = 3  # in a round; their median counts


class Case(NamedTuple):
    """Name what is measured: a dtype, rows of inputs, (out_features, in_features), and a share of zeros."""

    dtype: str
    rows: int
    shape: tuple[int, int]
    sparsity: float


def main() -> None:
    """Print the tables, and the sparsity from which on each dtype gains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="5 or more (default: %(default)s)")
    parser.add_argument("--footprint", type=float, default=FOOTPRINT, help="bytes (default: %(default)g)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [Case(*case) for case in product(DTYPES, ROWS, SHAPES, SPARSITIES)]
    found = {case: compared(case, options.rounds, options.footprint) for case in cases}
    print("\n".join(table(found)))


@torch.inference_mode()
def compared(case: Case, rounds: int, footprint: float) -> Estimate:
    """Return how many times as fast the sparse product is as the dense one."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    copies = max(round(footprint / (case.shape[0] * case.shape[1] * dtype.itemsize * case.rows)), 1)
    weights = [weight(case, dtype, generator) for _ in range(copies)]
    sparse = [CSR.of(each) for each in weights]
    inputs = torch.randn((case.rows, case.shape[1]), generator=generator).to(dtype)

    def run_dense() -> None:
        for each in weights:
            F.linear(inputs, each)

    def run_sparse() -> None:
        for each in sparse:
            each.multiply(inputs, None)

    run_dense()
    run_sparse()
    times: dict[Callable[[], None], list[float]] = {run_dense: [], run_sparse: []}
    for number in range(rounds):
        for run in (run_dense, run_sparse) if number % 2 else (run_sparse, run_dense):
            times[run].append(statistics.median(_seconds(run) for _ in range(PASSES)))
    return ratio(times[run_dense], times[run_sparse])


def weight(case: Case, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Return a weight of a case, whose zeros lie at random places."""
    values = torch.randn(case.shape, generator=generator).to(dtype)
    zeros = torch.randperm(values.numel(), generator=generator)[: round(case.sparsity * values.numel())]
    values.view(-1)[zeros] = 0
    return values


def table(found: Mapping[Case, Estimate]) -> list[str]:
    """Return the lines of a table for each dtype and number of rows, and the least sparsity that gains in each."""
    sparsities = sorted({case.sparsity for case in found})
    shapes = list(dict.fromkeys(case.shape for case in found))
    lines: list[str] = []
    for dtype, rows in dict.fromkeys((case.dtype, case.rows) for case in found):
        lines += [f"{dtype}, {rows} row(s) of inputs: dense time over sparse time", ""]
        lines += ["| weight | " + " | ".join(f"{sparsity:g}" for sparsity in sparsities) + " |"]
        lines += ["| :-- |" + " --: |" * len(sparsities)]
        for shape in shapes:
            cells = [_shown(found[Case(dtype, rows, shape, sparsity)]) for sparsity in sparsities]
            lines.append(f"| {shape[0]} x {shape[1]} | " + " | ".join(cells) + " |")
        own = {case: each for case, each in found.items() if (case.dtype, case.rows) == (dtype, rows)}
        from_there = least(own)
        lines += ["", f"faster for every weight from a sparsity of: {'none' if from_there is None else from_there}", ""]
    return lines


def least(found: Mapping[Case, Estimate]) -> float | None:
    """Return the least sparsity from which on all intervals, of every weight, lie above 1; None where there is none."""
    best = None
    for sparsity in sorted({case.sparsity for case in found}, reverse=True):
        if not all((each.low or 0) > 1 for case, each in found.items() if case.sparsity == sparsity):
            break
        best = sparsity
    return best


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _shown(estimate: Estimate) -> str:
    low, high = estimate.low or 0, estimate.high or 0
    return f"{estimate.value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
