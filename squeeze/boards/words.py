"""Say one figure of a table's row in words, the same in the terminal and in leaderboard.md."""

from __future__ import annotations

from typing import Any

import pandas as pd

from squeeze.records.answers import sign
from squeeze.records.sanitize import line

EAGER = "eager"  # the runtime of what rows are measured against
DASH = "\N{EM DASH}"  # stands where there is no figure
DAGGER = "\N{DAGGER}"  # of a baseline that is no row of its own
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def number(value: Any, digits: str) -> str:
    """Return a number in a format such as ``.2f``, or a dash."""
    return DASH if pd.isna(value) else format(value, digits)


def size(count: Any) -> str:
    """Return bytes with three digits: ``87 kB``, ``113 MB``, ``1.07 GB``."""
    if pd.isna(count):
        return DASH
    unit, name = next((each for each in UNITS if count >= 0.9995 * each[0]), (1.0, "B"))
    value = float(count) / unit
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {name}" if unit > 1 else f"{value:.0f} B"


def rank(row: pd.Series) -> str:
    """Return the places that tests leave a row: ``3`` or ``3-6``; a dash for one that is not ranked."""
    if pd.isna(row["rank_low"]):
        return DASH
    low, high = int(row["rank_low"]), int(row["rank_high"])
    return str(low) if low == high else f"{low}\N{EN DASH}{high}"


def mark(row: pd.Series, name: str) -> str:
    """Return the sign of a row's verdict on the estimate ``name``."""
    return sign(row.get(f"{name}_verdict"), row.get(f"{name}_within", float("nan")))


def interval(row: pd.Series, name: str, digits: str) -> str:
    """Say an estimate, its interval and its verdict: ``1.65 [1.60, 1.70] ▲``; a dash where there is none."""
    value, low, high = (row.get(column) for column in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(value):
        return DASH
    unsigned = digits.removeprefix("+")
    bounds = "" if pd.isna(low) else f" [{low:{unsigned}}, {high:{unsigned}}]"
    return f"{value:{digits}}{bounds} {mark(row, name)}".rstrip()


def is_baseline(row: pd.Series) -> bool:
    """Tell whether a row is what others are measured against: the uncompressed model, run as transformers runs it."""
    return bool(row["family"] == "baseline" and row.get("runtime", EAGER) == EAGER)


def short_label(row: pd.Series) -> str:
    """Return the row's label without the model's name, which the title of its board holds: ``rtn-4-g64``."""
    return line(str(row["label"]).removeprefix(f"{row['model']}-"))
