"""Compute a record's figures once more from its raw samples: what does not agree was changed, or other code's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.records import drafting, items
from squeeze.records import estimates as figures
from squeeze.records.estimates import Estimates
from squeeze.records.fidelity import fidelity, pooled
from squeeze.records.record import SCHEMA, Estimate, Record, Status
from squeeze.records.statistics import block_means, fewest_items
from squeeze.records.turns import is_timing, processes
from squeeze.request.cell import Cell

TOLERANCE = 1e-4  # relative: a record keeps six digits, its samples float32
P_TOLERANCE = 1e-3  # absolute: the p-value of a large effect moves by orders of magnitude with the last digit
BASELINE = "baseline_"
LATER = re.compile(r"itl_p99_ms(_b\d+)?")  # figures that the first records of today's schema do not have

Arrays = Mapping[str, npt.NDArray[Any]]


def disagreements(record: Record, arrays: Arrays) -> Iterator[str]:
    """Yield each figure that the samples do not bear out, with both values.

    Of an older schema, with fewer columns and intervals by older rules, the values that a record has are compared; so
    are, of any record, figures of ``LATER``.
    Raises ValueError, KeyError or IndexError for samples that do not fit together.
    """
    for name, found in figures.known(estimates(record, arrays)).items():
        said = record.estimates.get(name)
        if said is None and (record.schema < SCHEMA or LATER.fullmatch(name)):
            continue
        if said is not None and record.schema < SCHEMA:
            said, found = Estimate(said.value), Estimate(found.value)
        if said is None or not _agree(said, found):
            yield f"{name} is {_words(said)}, its samples give {_words(found)}"
    if record.block_nll:
        nll, older = arrays["token_nll"], record.schema < SCHEMA  # the older ones kept shorter blocks
        losses = block_means(nll, len(record.block_nll)) if older else figures.block_losses(nll)
        if len(losses) != len(record.block_nll) or not np.allclose(losses, record.block_nll, rtol=TOLERANCE, atol=1e-4):
            yield "block_nll is not what its samples give"
    if record.item_correct and record.item_correct != items.kept(arrays):
        yield "item_correct is not what its samples give"


def estimates(record: Record, arrays: Arrays) -> Estimates:
    """Return what follows from samples alone: times, rates, speed-ups, perplexity, distances, accuracies, changes."""
    own = processes(arrays)
    found = {**figures.speeds(own, processes(arrays, BASELINE)), **(figures.inter_token(own) if own else {})}
    found |= drafting.figures(drafting.of_arrays(arrays))
    if "token_nll" in arrays:
        found["perplexity"] = Estimate(float(np.exp(arrays["token_nll"].mean(dtype=np.float64))))
    of_baseline = {name.removeprefix(BASELINE): each for name, each in arrays.items() if name.startswith(BASELINE)}
    found |= fidelity(arrays, of_baseline)
    paired = {name: array for name, array in arrays.items() if name in of_baseline and not is_timing(name)}
    for name, array in paired.items():
        if name.endswith("_correct"):
            found[f"acc_{name.removesuffix('_correct')}"] = Estimate(float(array.mean()))
    if record.status is Status.OK:
        found |= figures.changes(paired, of_baseline, record.cell["protocol"]["seed"])
        found |= pooled(paired, of_baseline, fewest_items(Cell.from_json(record.cell).is_classifier))
    return found


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
