"""Find what no measurement can give: figures out of range, intervals beside their value, an end before its start."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any

from squeeze.records.plausibility import implausible
from squeeze.records.record import IMPLAUSIBLE, Estimate, Record, Status

UTILISED = 1.05  # of a limit that was measured on the same machine, itself within a few per cent
HEADERS = 65_536  # bytes of a weight file that are no weights: they count in a model of a few thousand parameters
ROUNDING = 1e-5  # relative: a record keeps six digits
ROUNDED_TO_ZERO = 1e-6  # a divergence of two equal distributions, in float32

# The first pattern that a column's name matches wholly gives its least and greatest value.
RANGES = tuple(
    (re.compile(pattern), low, high)
    for pattern, low, high in (
        (r"acc_.*_delta", -1.0, 1.0),
        (r"acc_.*|acceptance.*|top1_agreement|top1_floor|divergent_.*|.*repetition", 0.0, 1.0),
        (r"mbu|mfu", 0.0, UTILISED),
        (r"perplexity(_ood|_held_out)?", 1.0, math.inf),
        (r".*_delta", -math.inf, math.inf),
        (r"kl_.*", -ROUNDED_TO_ZERO, math.inf),
        (r".*", 0.0, math.inf),  # sizes, times, rates and ratios
    )
)
SHARES = ("sparsity", "input_sparsity", "compressed_share")  # of what was realised


def impossible(record: Record) -> Iterator[str]:
    """Yield in words each figure of the record that cannot be true.

    Raises TypeError or ValueError where a field is of another kind than the schema says.
    """
    for name, estimate in record.estimates.items():
        yield from _estimate(name, estimate)
    yield from _bits(record.estimates)
    yield from _figures("realised", {name: record.realised[name] for name in SHARES if name in record.realised}, 1.0)
    yield from _figures("stages", record.stages)
    if not all(math.isfinite(loss) and loss >= 0 for loss in record.block_nll):
        yield "block_nll holds a loss that is negative or not finite"
    if datetime.fromisoformat(record.finished) < datetime.fromisoformat(record.started):
        yield f"finished at {record.finished}, before it started at {record.started}"
    if record.status is Status.OK and not (record.estimates and record.samples):
        yield "status ok, but without figures or samples"
    if (doubt := implausible(record)) and IMPLAUSIBLE not in record.flags:
        yield f"has no flag {IMPLAUSIBLE!r}, though it {doubt}"
    if record.status is not Status.OK and not record.reason:
        yield f"status {record.status} without a reason"


def _estimate(name: str, estimate: Estimate) -> Iterator[str]:
    low, high = next((low, high) for pattern, low, high in RANGES if pattern.fullmatch(name))
    value = estimate.value
    if not math.isfinite(value) or not low <= value <= high:
        yield f"{name} is {value:g}, expected {_expected(low, high)}"
    elif not _in_order(estimate):
        yield f"{name} is {value:g}, its interval {estimate.low} to {estimate.high}"
    if estimate.p_value is not None and not 0 <= estimate.p_value <= 1:
        yield f"{name} has the p-value {estimate.p_value:g}, expected 0 to 1"
    if estimate.n is not None and estimate.n < 1:
        yield f"{name} has n = {estimate.n}, expected at least 1"


def _in_order(estimate: Estimate) -> bool:
    bounds = [bound for bound in (estimate.low, estimate.value, estimate.high) if bound is not None]
    margin = ROUNDING * abs(estimate.value)
    return all(map(math.isfinite, bounds)) and all(one <= other + margin for one, other in pairwise(bounds))


def _bits(estimates: Mapping[str, Estimate]) -> Iterator[str]:
    """Check bits, bytes and compression ratio, three words for one thing; no format needs more than float32.

    A draft beside the model is another model, which has as much.
    """
    if not {"effective_bits", "compression_ratio", "bytes"} <= estimates.keys():
        return
    bits, ratio, size = (estimates[name].value for name in ("effective_bits", "compression_ratio", "bytes"))
    if not math.isclose(bits * ratio, 32, rel_tol=10 * ROUNDING):
        yield f"effective_bits {bits:g} and compression_ratio {ratio:g} contradict: their product is 32"
    dense = 32 + 8 * HEADERS / (8 * size / bits) if bits > 0 and size > 0 else 32
    models = 2 if "draft_bytes" in estimates else 1
    if bits > models * dense:
        yield f"effective_bits is {bits:g}, expected at most the {models * 32} of float32"


def _figures(what: str, values: Mapping[str, Any], high: float = math.inf) -> Iterator[str]:
    for name, value in values.items():
        if not math.isfinite(value) or not 0 <= value <= high:
            yield f"{what}.{name} is {value:g}, expected {_expected(0, high)}"


def _expected(low: float, high: float) -> str:
    if math.isinf(low):
        return "a finite number"
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
