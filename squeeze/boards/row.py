"""Say all that is known of one row: its figures in words, by what they are about (``squeeze show``)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pandas as pd

from squeeze.boards import flags, summary
from squeeze.boards.glossary import GROUPS, OF_CLASSIFIERS, WHOLE, Term, group_of, term
from squeeze.boards.table import table
from squeeze.boards.words import mark, short_label, size
from squeeze.records.answers import UNDECIDED, amount, kind
from squeeze.records.record import Estimate, Record, Status
from squeeze.records.sanitize import line

SPREAD = re.compile(
    r"(ttft_ms|encode_ms|itl_p\d+_ms|(decode_token|item)s_per_s|load_seconds|energy_\w+|cost_\w+|\w+_bytes)(_b\d+|_at_\d+)?"
    r"|accept(ed_tokens|ance)\w*"
)
LARGE = 1e4  # from where a figure of four digits would hide part of a whole number
SHARES = re.compile(
    r"acc_\w+|top1_\w+|retained_accuracy|\w*divergent_\w+|\w*repetition|mbu|mfu|compressed_share|acceptance\w*"
)
HELD_OUT = {  # what is said of each step, in words
    "perplexity_held_out": "perplexity of calibration text that was held out",
    "accuracy_held_out": "accuracy on calibration sentences that were held out",
}


def figures(record: Record, records: Sequence[Record]) -> Iterator[str]:
    """Yield a row's figures, a line each, below headings; verdicts are those of its board among ``records``."""
    rows = table(records)
    row = rows[rows["attempt"] == record.attempt].iloc[0]
    told: dict[str, list[str]] = defaultdict(list)
    for name in sorted(record.estimates, key=_reading_order):
        told[group_of(name)].append(_figure(name, record.estimates[name], row))
    if record.status is Status.OK and pd.notna(row["rank_low"]):
        place = f"{row['rank_low']} to {row['rank_high']}" if row["rank_low"] != row["rank_high"] else row["rank_low"]
        by = "accuracy" if _is_classifier(row) else "perplexity"
        told["place on the board"].append(f"rank {place}, by {by}: group {row['group']}")
    for name, value in record.realised.items():
        if name not in record.estimates and (said := _plain(value)):
            known = _term(name, row)
            told[group_of(name)].append(f"{name}: {said}" + (f" ({known.words})" if known else ""))
    told["quality"] += _step_by_step(record)
    for group in GROUPS:
        if told[group]:
            yield f"{group}:"
            yield from (f"  {line(text)}" for text in told[group])
    named = pd.DataFrame([row]).assign(name=short_label(row))
    yield from flags.explained(named)


def _step_by_step(record: Record) -> Iterator[str]:
    """Yield the quality after each step of the recipe, on calibration text that no step has seen."""
    before: float | None = None
    for step in record.realised.get("steps", ()):
        for figure in (name for name in HELD_OUT if name in step):
            yield f"after step {step['step']}: {_changed(figure, step[figure], before)} ({HELD_OUT[figure]})"
            before = step[figure]


def _changed(figure: str, now: float | None, before: float | None) -> str:
    """Say a figure of HELD_OUT, and how far it is from the one before: a share in points, a perplexity relatively."""
    if now is None:
        return "no finite number"
    if figure == "accuracy_held_out":
        return f"{now:.2%}" + ("" if before is None else f", {100 * (now - before):+.2f} points")
    return f"{now:,.4g}" + (f", {now / before - 1:+.1%}" if before else "")


def _figure(name: str, estimate: Estimate, row: pd.Series) -> str:
    """Say an estimate: ``decode_speedup: 1.42 times [1.38 to 1.46, 95 %], faster ▲ (how many times as fast ...)``."""
    known = _term(name, row)
    unit = "" if known is None or known.unit == WHOLE else known.unit
    shown = _valued(name, estimate.value, unit)
    ends = [_valued(name, end, unit) for end in (estimate.low, estimate.high) if end is not None]
    if len(ends) == 2 and set(ends) != {shown}:
        bounds = f"{ends[0].removesuffix(unit).rstrip()} to {ends[1]}"
        shown += f", {bounds} over the rounds" if SPREAD.fullmatch(name) else f" [{bounds}, 95 %]"
    return f"{name}: {shown}{_verdict(name, row)}" + (f" ({known.words})" if known else "")


def _is_classifier(row: pd.Series) -> bool:
    return summary.classified(pd.DataFrame([row]))


def _term(name: str, row: pd.Series) -> Term | None:
    """Return what a figure of the row is: of a classifier in its own words."""
    return (OF_CLASSIFIERS.get(name) if _is_classifier(row) else None) or term(name)


def _verdict(name: str, row: pd.Series) -> str:
    of, word, within = kind(name), row.get(f"{name}_verdict"), row.get(f"{name}_within")
    if of is None or not isinstance(word, str):
        return ""
    near = f" within {'±' if word == UNDECIDED else ''}{amount(of, float(within))}" if pd.notna(within) else ""
    return f", {word}{near} {mark(row, name)}"


def _valued(name: str, value: float, unit: str) -> str:
    if unit == "bytes":
        return size(value)
    if SHARES.fullmatch(name):
        return f"{100 * value:+.2f} points" if name.endswith("_delta") else f"{value:.2%}"
    signed = "+" if name.endswith("_delta") else ""
    digits = ".0f" if abs(value) >= LARGE and value == int(value) else ".4g"  # a count, whole
    return f"{value:{signed},{digits}} {unit}".rstrip()


def _plain(value: object) -> str:
    """Say what was found by looking; nothing of what has parts, but for a list of words such as mismatches."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(each for each in value if isinstance(each, str))
    return f"{value:,.6g}" if isinstance(value, int | float) else value if isinstance(value, str) else ""


def _reading_order(name: str) -> tuple[int, int, int, str]:
    """Sort as GROUPS do, batch sizes, lengths and tasks behind their kin."""
    group = list(GROUPS).index(group_of(name))
    names = list(GROUPS[group_of(name)])
    plain, _, point = re.sub(r"_(b|at_)(\d+)$", r" \2", name).partition(" ")
    return group, names.index(plain) if plain in names else len(names), int(point or 0), name
