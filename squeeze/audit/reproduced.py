"""Judge, field by field, whether a second attempt at a cell is the first one again.

What follows from the artifact and the text alone must be the same to the last bit: hashes, sizes, losses, answers.
What is timed varies, so it counts as the same unless the samples show otherwise:

- Speed-ups: Welch's t-test (1947) on the logarithms of the ratios to the baseline of the same round. *Drifted* where it
  shows a difference at 5 %, corrected (Holm) for the number of such fields; else *within the interval*.
- Times and rates by themselves are not judged: the processes of one session share its minutes, so they are no
  replicates of another session's. The same baseline minutes apart had p < 0.05 in 46 % of pairs.
- Memory: *within the interval* where the spreads over rounds, widened by 2 % and 1 MiB, meet; else *drifted*.

Nothing of these is judged on another machine, other software, in a shared process; speed-ups not with fewer than five
rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from squeeze.records.estimates import at, suffix
from squeeze.records.record import CONTENDED, PROCESS, UNSTEADY, WARMING, Estimate
from squeeze.records.rows import Side, alike
from squeeze.records.statistics import ALPHA, FEWEST_ROUNDS, holm
from squeeze.records.turns import is_timing, processes, round_ratios, seconds_each, timed

EXACT, WITHIN, DRIFTED, NOT_JUDGED = "bit-exact", "within the interval", "drifted", "not judged"
DETERMINED = (
    *("perplexity", "perplexity_delta", "bits_per_byte", "kl_divergence", "top1_agreement"),
    *("top1_floor", "divergent_share", "divergent_floor", "first_divergence", "repetition", "baseline_repetition"),
    "retained_accuracy",
    *("bytes", "bytes_on_disk", "effective_bits", "block_effective_bits", "compression_ratio", "adapter_bytes"),
)
SCORED = ("acc_", "kl_")
TIMED = {
    "ttft_s": ("ttft_ms", "ttft_speedup"),
    "token_s": ("decode_tokens_per_s", "decode_speedup"),
    "encode_s": ("encode_ms", "encode_speedup"),
    "prompt_s": ("ttft_ms", "ttft_speedup"),
}
OF_TIMING = (
    "speed_baseline",
    "baseline_runtime",
    "timing",
    "rounds_ended",
    "decode_gap",
    "encode_gap",
)  # what was realised, yet may be otherwise the next time
ABSOLUTE = "minutes differ: only ratios to a baseline of the same rounds are judged"
MEMORY_SHARE, MEMORY_BYTES = 0.02, 2**20  # by which two processes that do the same may differ
ABSENT = "absent"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """Hold the verdict on a field: its value as recorded and now, in words, one of four verdicts, what it rests on."""

    field: str
    recorded: str
    now: str
    word: str
    why: str = ""


def verdicts(before: Side, after: Side) -> Iterator[Verdict]:
    """Yield the verdict on each field of two attempts at one cell."""
    yield from _determined(_facts(before), _facts(after))
    yield from _samples(before.arrays, after.arrays)
    unlike = _unlike(before, after)
    yield from _times(before, after, unlike)
    yield from _memory(before, after, unlike)


def _facts(side: Side) -> dict[str, Any]:
    """Return what must be the same to the last bit, by name."""
    record = side.record
    return {
        "status": str(record.status),
        "stage": record.stage,
        "artifact_hash": record.artifact_hash,
        "flags": [flag for flag in record.flags if flag not in (UNSTEADY, WARMING, CONTENDED)],
        **{f"claimed.{name}": value for name, value in record.claimed.items()},
        **{f"realised.{name}": value for name, value in record.realised.items() if name not in OF_TIMING},
        **{name: one for name, one in record.estimates.items() if name in DETERMINED or name.startswith(SCORED)},
        "block_nll": list(record.block_nll),
        "item_correct": record.item_correct,
    }


def _determined(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Verdict]:
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name, ABSENT), after.get(name, ABSENT)
        if one != other or one not in ("", None, []):
            yield Verdict(name, _words(one), _words(other), EXACT if one == other else DRIFTED)


def _samples(before: Mapping[str, Array], after: Mapping[str, Array]) -> Iterator[Verdict]:
    """Judge the arrays of what is not timed."""
    for name in dict.fromkeys([*before, *after]):
        if is_timing(name):
            continue
        one, other = before.get(name), after.get(name)
        differing = _differing(one, other)
        now = _words(other) + (f", {differing} of them differ" if differing else "")
        yield Verdict(f"samples.{name}", _words(one), now, EXACT if differing == 0 else DRIFTED)


def _differing(one: Array | None, other: Array | None) -> int | None:
    """Return how many values differ in a bit; None for arrays that are not of one kind."""
    if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return None
    bits = (np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.itemsize) for array in (one, other))
    return int(np.not_equal(*bits).any(axis=1).sum())


def _unlike(before: Side, after: Side) -> str:
    """Return why nothing that depends on the machine can be judged; empty where it can."""
    if not alike(before.record, after.record):
        return "another machine or other software"
    return "" if before.record.isolation == after.record.isolation == PROCESS else "measured in a shared process"


def _times(before: Side, after: Side, unlike: str) -> Iterator[Verdict]:
    names = [name for name in _logs(before) if name in _logs(after)]
    pairs = {name: (_logs(after)[name], _logs(before)[name]) for name in names}
    reasons = {name: unlike or _no_verdict(before, after, name, min(map(len, pairs[name]))) for name in names}
    tests = {name: scipy.stats.ttest_ind(*pairs[name], equal_var=False) for name in names if not reasons[name]}
    adjusted = dict(zip(tests, holm([test.pvalue for test in tests.values()]), strict=True))
    for name in names:
        was, now_is = (_words(side.record.estimates.get(name, ABSENT)) for side in (before, after))
        if reasons[name]:
            yield Verdict(name, was, now_is, NOT_JUDGED, reasons[name])
        else:
            now, recorded = (logs.mean() for logs in pairs[name])
            interval = tests[name].confidence_interval(1 - ALPHA)
            times, low, high = np.exp([now - recorded, interval.low, interval.high])
            why = f"x {times:.3f} [{low:.3f}, {high:.3f}]"
            yield Verdict(name, was, now_is, DRIFTED if adjusted[name] <= ALPHA else WITHIN, why)


def _logs(side: Side) -> dict[str, Array]:
    """Return the logarithm of each round's figure, (rounds,), by the name of its estimate."""
    found = {}
    known = {name: point for name in side.arrays if (point := timed(name)) is not None}
    for name, (kind, place) in sorted(known.items(), key=lambda each: (list(TIMED).index(each[1][0]), each[0])):
        figure, speedup = TIMED[kind]
        ending = at(place) if kind == "prompt_s" else suffix(place)
        own = np.log([seconds_each(values, kind, place) for values in processes(side.arrays)])
        found[f"{figure}{ending}"] = -own if kind == "token_s" else own
        if f"baseline_{name}" in side.arrays:  # which may take shorter prompts
            found[f"{speedup}{ending}"] = -np.log(round_ratios(side.arrays, kind, place))
    return found


def _no_verdict(before: Side, after: Side, name: str, rounds: int) -> str:
    """Return why a time is not judged; empty where it is."""
    records = (before.record, after.record)
    if "speedup" not in name:
        return ABSOLUTE
    against = {
        tuple(record.realised.get(name) for name in ("speed_baseline", "baseline_runtime")) for record in records
    }
    if len(against) > 1:
        return "against another baseline"
    return f"{rounds} rounds, {FEWEST_ROUNDS} needed" if rounds < FEWEST_ROUNDS else ""


def _memory(before: Side, after: Side, unlike: str) -> Iterator[Verdict]:
    for name, one in before.record.estimates.items():
        other = after.record.estimates.get(name)
        if not name.endswith("_bytes") or one.low is None or other is None:
            continue
        word = NOT_JUDGED if unlike else WITHIN if _meet(one, other) else DRIFTED
        yield Verdict(name, _words(one), _words(other), word, unlike)


def _meet(one: Estimate, other: Estimate) -> bool:
    lower, upper = sorted([one, other], key=lambda estimate: estimate.value)
    assert lower.high is not None
    assert upper.low is not None
    return upper.low <= lower.high * (1 + MEMORY_SHARE) + MEMORY_BYTES


def _words(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, Estimate):
        bounds = "" if value.low is None else f" [{value.low:.4g}, {value.high:.4g}]"
        return f"{value.value:.6g}{bounds}"
    if isinstance(value, np.ndarray):
        return f"{value.size} values"
    if isinstance(value, list) and len(value) > 3:
        return f"{len(value)} values"
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:16]
