"""Tell how one row differs from another, in words and figures, from their raw samples: ``squeeze compare A B``.

Speed is compared round by round. Rows that were timed in the same rounds are compared directly, turn by turn; others
each relative to the baseline process of its own round, which stands in for the conditions of the moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from squeeze.boards import certificate
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.records.answers import (
    ACCURACY,
    FAILED,
    PERPLEXITY,
    SPEED,
    UNDECIDED,
    Answer,
    Kind,
    Margins,
    amount,
    relative,
)
from squeeze.records.estimates import changes
from squeeze.records.plausibility import implausible
from squeeze.records.record import (
    DECODES_OTHERWISE,
    ENCODES_OTHERWISE,
    IMPLAUSIBLE,
    NOT_CAUSAL,
    UNSTEADY,
    WARMING,
    Estimate,
    Record,
    Status,
)
from squeeze.records.rows import Side, called, find, unlike_environments
from squeeze.records.statistics import accuracy_change, fewest_items, mcnemar, ratio, retained_accuracy
from squeeze.records.store import RecordStore
from squeeze.records.turns import POINTS, processes, round_ratio, round_ratios, timed
from squeeze.records.welch import ratio_apart

Named = tuple[str, Side]  # what a row is called beside the other, and the row
TIMINGS = {"ttft_s": "first token", "token_s": "decoding", "encode_s": "classifying", "prompt_s": "first token"}
UNITS = {"b": "at batch {}", "t": "of a prompt of {}"}  # what a point of such calls is


def explain(results: Path, a: str, b: str, allow_mixed: bool = False, margins: Margins | None = None) -> None:
    """Print how row ``a`` differs from row ``b``; each is a label, or the beginning of a key or an attempt.

    ``allow_mixed``: show rows of unlike machines or protocols apart, without a ratio between them. ``margins``: which
    differences count as none (default: Margins()).

    Raises SqueezeError when a row is not there, failed or is ambiguous, or when the two are unlike (the fields are
    named) and ``allow_mixed`` is false; IntegrityError when a samples file is missing, not the one recorded, or its
    arrays do not fit together.
    """
    store = RecordStore(results)
    found = find(store, {a, b})
    first, second = (_measured(store, name, found[name]) for name in (a, b))
    unlike = list(_unlike(first, second))
    if unlike and not allow_mixed:
        raise SqueezeError(
            f"{a} and {b} were not measured alike: {'; '.join(unlike)}. Measure both under one set of conditions, or "
            "use --allow-mixed to see them apart"
        )
    try:
        named = list(zip(called([first.record, second.record]), (first, second), strict=True))
        lines = list(_apart(named, unlike) if unlike else _together(named, margins or Margins()))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise IntegrityError(f"{a} and {b}: their samples or figures do not fit together ({why})") from error
    print("\n".join(lines))


def _apart(named: Sequence[Named], unlike: list[str]) -> Iterator[str]:
    yield f"Not measured alike, so shown apart: {'; '.join(unlike)}."
    for name, side in named:
        yield from (_heading(name, side), *_alone(side))


def _together(named: Sequence[Named], margins: Margins) -> Iterator[str]:
    (name, first), (other, second) = named
    yield from (_heading(name, first), f"against {_heading(other, second)}")
    for part in (_speed, _perplexity, _answers):
        yield from part(first, second, margins)
    for name, side in named:
        if found_against := certificate.lines(side.record, margins):
            yield from (name, *found_against)
        if doubt := implausible(side.record):
            yield f"{name} is {IMPLAUSIBLE}: it {doubt}"
    yield "Intervals and p-values are of this pair alone; `squeeze board` corrects its verdicts for all rows."


def _measured(store: RecordStore, name: str, record: Record) -> Side:
    if record.status != Status.OK:
        raise SqueezeError(f"{name!r} has no figures: {record.status}: {record.reason}")
    return Side.of(store, record)


def _unlike(first: Side, second: Side) -> Iterator[str]:
    """Yield the conditions in which two rows differ, with both values.

    Rows of several runtimes that were timed beside one and the same eager model are alike in all but that.
    """
    one, other = first.cell, second.cell
    beside = first.record.beside == second.record.beside
    for name in ("model", "common_protocol", *(() if beside else ("runtime",))):
        parts = (_conditions(getattr(cell, name)) for cell in (one, other))
        yield from _differing(name.removeprefix("common_"), *parts)
    if not beside:
        yield from unlike_environments(first.record, second.record)


def _conditions(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a cell without what two rows may differ in: names, and the dtype that a model is held in."""
    return {name: value for name, value in part.items() if name not in ("name", "dtype")}


def _differing(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            yield f"{name}.{key} ({one.get(key)} and {other.get(key)})"


def _heading(name: str, side: Side) -> str:
    return f"{name} (attempt {side.record.attempt[:12]}, protocol {side.cell.protocol['name']})"


def _alone(side: Side) -> Iterator[str]:
    """Yield the row's own figures, against its own baseline."""
    of_text = "perplexity" in side.record.estimates
    quality = ("perplexity", "perplexity_delta") if of_text else ("acc_pooled", "acc_pooled_delta")
    for name in ("decode_speedup", "ttft_speedup", "encode_speedup", *quality):
        if (estimate := side.record.estimates.get(name)) is not None:
            yield f"  {name}: {estimate.value:.4g}{_interval(estimate)}"


def _speed(first: Side, second: Side, margins: Margins) -> Iterator[str]:
    baselines = [side.record.realised.get("speed_baseline", side.cell.model["dtype"]) for side in (first, second)]
    if baselines[0] != baselines[1]:
        yield f"  speed: not comparable, the baselines are unlike ({baselines[0]} and {baselines[1]})"
        return
    flags = {*first.record.flags, *second.record.flags}
    note = ", among unsteady times" if UNSTEADY in flags else ""
    for name, kind, point in _both(first, second):
        what = f"{TIMINGS[kind]} {UNITS[POINTS[kind]].format(point)}"
        estimate = _times_as_fast(first, second, name, kind, point)
        vetoes = [flag for flag in (WARMING, DECODES_OTHERWISE, ENCODES_OTHERWISE) if flag in flags]
        said = f"{FAILED} ({', '.join(vetoes)})" if vetoes else _in_words(SPEED, estimate, margins)
        yield f"  {what}: {estimate.value:.3f} times as fast{_interval(estimate)}, {estimate.n} rounds{note}: {said}"


def _both(first: Side, second: Side) -> list[tuple[str, str, str]]:
    """Return the arrays of times that both rows have, with their kind and their point, shorter prompts first.

    Of prompts that are too long for a baseline there is nothing to compare by.
    """
    found = []
    for name in first.arrays.keys() & second.arrays.keys():
        beside = all(f"baseline_{name}" in side.arrays for side in (first, second))
        if (known := timed(name)) is not None and (beside or known[0] != "prompt_s"):
            found.append((name, *known))
    return sorted(found, key=lambda each: (each[1], int(each[2])))


def _times_as_fast(first: Side, second: Side, name: str, kind: str, point: str) -> Estimate:
    """Return how many times as fast the first row is as the second, of the calls whose times are the array ``name``.

    Rows of one block, beside the same processes of the baseline, are compared round by round. Those of two blocks have
    no round in common, nor as many of them.
    """
    one, other = ([1 / each for each in round_ratios(side.arrays, kind, point)] for side in (first, second))
    rounds = min(len(one), len(other))
    beside, beside_other = (side.arrays[f"baseline_{name}"][:rounds] for side in (first, second))
    if np.array_equal(beside, beside_other):
        pairs = zip(processes(first.arrays)[:rounds], processes(second.arrays)[:rounds], strict=True)
        return ratio([1 / round_ratio(*pair, kind, point) for pair in pairs], [1.0] * rounds)
    return ratio_apart(one, other)


def _perplexity(first: Side, second: Side, margins: Margins) -> Iterator[str]:
    if not {"token_nll"} <= first.arrays.keys() & second.arrays.keys():
        return
    one, other = (side.arrays["token_nll"].astype(np.float64) for side in (first, second))
    estimate = changes({"token_nll": one}, {"token_nll": other}, first.cell.protocol["seed"])["perplexity_delta"]
    values = [float(np.exp(losses.mean())) for losses in (one, other)]
    vetoed = NOT_CAUSAL in (*first.record.flags, *second.record.flags)
    said = f"{FAILED} ({NOT_CAUSAL})" if vetoed else _in_words(PERPLEXITY, relative(estimate, values[1]), margins)
    yield (
        f"  perplexity: {values[0]:.4g} against {values[1]:.4g}, {estimate.value:+.3g}{_interval(estimate, '+')} or "
        f"{estimate.value / values[1]:+.1%}, {estimate.n} blocks of tokens: {said}"
    )


def _answers(first: Side, second: Side, margins: Margins) -> Iterator[str]:
    endings = {name for name in first.arrays.keys() & second.arrays.keys() if name.endswith("_correct")}
    for name in sorted(name for name in endings if not name.startswith("baseline_")):
        one, other = first.arrays[name].astype(bool), second.arrays[name].astype(bool)
        flips = mcnemar(one, other)
        bound = retained_accuracy(one, other, fewest_items(first.cell.is_classifier))
        kept = "" if bound is None else f"; keeps at least {bound:.1%} of the accuracy (one-sided 95 %)"
        change = accuracy_change(one, other)
        yield (
            f"  {name.removesuffix('_correct')}: {one.mean():.1%} against {other.mean():.1%} of {one.size} items; "
            f"{flips['wrong_to_right']} answers won, {flips['right_to_wrong']} lost, "
            f"McNemar p = {flips['p_value']:.2g}, {_points(change)}: {_in_words(ACCURACY, change, margins)}{kept}"
        )


def _in_words(of: Kind, estimate: Estimate, margins: Margins) -> str:
    """Answer an estimate and, where that leaves it open, say what such a measurement would have shown."""
    answer = Answer.to(of, estimate, margins)
    if answer.word != UNDECIDED:
        return str(answer)
    return f"{answer} (differences from {amount(of, answer.detectable)} on are found in 80 % of tries)"


def _points(change: Estimate) -> str:
    low, value, high = (100 * (each or 0.0) for each in (change.low, change.value, change.high))
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def _interval(estimate: Estimate, sign: str = "") -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    p_value = "" if estimate.p_value is None else f", p = {estimate.p_value:.2g}"
    return f" (95 % interval {estimate.low:{sign}.3g} to {estimate.high:{sign}.3g}{p_value})"
