"""Compute a record's figures once more from its raw samples: what does not agree was changed, or other code's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.records import estimates as figures
from squeeze.records.estimates import Estimates
from squeeze.records.record import SCHEMA, Estimate, Record, Status
from squeeze.records.statistics import block_means

TOLERANCE = 1e-4  # relative: a record keeps six digits, its samples float32
P_TOLERANCE = 1e-3  # absolute: the p-value of a large effect moves by orders of magnitude with the last digit
TIMINGS = ("ttft_s", "token_s")
MEANS = {"kl": "kl_divergence", "top1": "top1_agreement"}

Arrays = Mapping[str, npt.NDArray[Any]]


def disagreements(record: Record, arrays: Arrays) -> Iterator[str]:
    """Yield each figure that the samples do not bear out, with both values.

    Of an older schema, with fewer columns and intervals by older rules, the values that a record has are compared.
    Raises ValueError, KeyError or IndexError for samples that do not fit together.
    """
    for name, found in figures.known(estimates(record, arrays)).items():
        said = record.estimates.get(name)
        if record.schema < SCHEMA:
            if said is None:
                continue
            said, found = Estimate(said.value), Estimate(found.value)
        if said is None or not _agree(said, found):
            yield f"{name} is {_words(said)}, its samples give {_words(found)}"
    if record.block_nll:
        nll, older = arrays["token_nll"], record.schema < SCHEMA  # the older ones kept shorter blocks
        losses = block_means(nll, len(record.block_nll)) if older else figures.block_losses(nll)
        if len(losses) != len(record.block_nll) or not np.allclose(losses, record.block_nll, rtol=TOLERANCE, atol=1e-4):
            yield "block_nll is not what its samples give"


def estimates(record: Record, arrays: Arrays) -> Estimates:
    """Return what follows from samples alone: times, rates, speed-ups, perplexity, accuracies, their changes."""
    found = figures.speeds(rounds(arrays), rounds(arrays, "baseline_"))
    if "token_nll" in arrays:
        found["perplexity"] = Estimate(float(np.exp(arrays["token_nll"].mean(dtype=np.float64))))
    for name, column in MEANS.items():
        if name in arrays:
            found[column] = Estimate(float(arrays[name].mean(dtype=np.float64)))
    paired = {name: array for name, array in arrays.items() if f"baseline_{name}" in arrays and not _is_timing(name)}
    for name, array in paired.items():
        if name.endswith("_correct"):
            found[f"acc_{name.removesuffix('_correct')}"] = Estimate(float(array.mean()))
    if record.status is Status.OK:
        baseline = {name: arrays[f"baseline_{name}"] for name in paired}
        found |= figures.changes(paired, baseline, record.cell["protocol"]["seed"])
    return found


def rounds(arrays: Arrays, prefix: str = "") -> Sequence[figures.Values]:
    """Return the times of each round's process as the latency stage gave them: kind -> batch size -> seconds."""
    timed = [(kind, name) for kind in TIMINGS for name in arrays if name.startswith(f"{prefix}{kind}_b")]
    count = len(arrays[timed[0][1]]) if timed else 0
    made: list[dict[str, dict[str, list[float]]]] = [{kind: {} for kind in TIMINGS} for _ in range(count)]
    for kind, name in timed:
        for values, times in zip(made, arrays[name], strict=True):
            values[kind][name.rpartition("_b")[2]] = times.tolist()
    return made


def _is_timing(name: str) -> bool:
    return name.startswith(TIMINGS)


def _agree(said: Estimate, found: Estimate) -> bool:
    pairs = [(said.value, found.value), (said.low, found.low), (said.high, found.high)]
    scale = TOLERANCE * max(abs(found.value), abs(found.high or 0.0), 1e-3)
    return (
        said.n == found.n
        and all(_close(one, other, scale) for one, other in pairs)
        and _close(said.p_value, found.p_value, P_TOLERANCE)
    )


def _close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=0.0, abs_tol=tolerance)


def _words(estimate: Estimate | None) -> str:
    if estimate is None:
        return "missing"
    bounds = "" if estimate.low is None else f" [{estimate.low:.6g}, {estimate.high:.6g}]"
    return f"{estimate.value:.6g}{bounds}"
