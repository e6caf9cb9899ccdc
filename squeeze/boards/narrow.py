"""Choose the columns of a board that fit a width: the less telling ones are left out, others take a short form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from rich.cells import cell_len

from squeeze.boards import summary
from squeeze.boards.columns import Column, columns

# What is given up, in this order, until a table is narrow enough.
FULL, SHORT, GONE = "full", "short", "gone"
Step = Mapping[str, str]  # heading -> the form that its column takes
NARROWER: tuple[Step, ...] = (
    *({name: GONE} for name in ("ok", "group", "top-1", "accepted", "tok/s", "texts/s", "other text", "bits")),
    {"change": SHORT},
    {"real": GONE},
    {"change": GONE, "perplexity": SHORT},
    {"speed-up": SHORT},
    *({name: GONE} for name in ("accuracy", "KL", "size")),
)
NARROWER_CLASSIFIED = tuple(step for step in NARROWER if "accuracy" not in step)  # it is what ranks them


def fitting(rows: pd.DataFrame, width: int) -> list[Column]:
    """Return the columns of these rows that fit ``width`` characters, the most telling ones, some in a short form."""
    full = columns(rows)
    widths = {form: {column.heading: _width(column, rows) for column in forms} for form, forms in _forms(full).items()}

    def fits(steps: Sequence[Step]) -> bool:
        how = _how(steps)
        kept = [column.heading for column in full if how.get(column.heading) != GONE]
        return 1 + sum(1 + widths[how.get(name, FULL)][name] for name in kept) <= width

    given_up: list[Step] = []
    for step in NARROWER_CLASSIFIED if summary.classified(rows) else NARROWER:
        if not fits(given_up):
            given_up.append(step)
    for step in reversed(given_up[:-1]):  # the last one was needed; an earlier one may not be, after it
        later = given_up[given_up.index(step) + 1 :]
        fewer = [other for other in given_up if other is not step]
        if not step.keys() & _how(later).keys() and fits(fewer):
            given_up = fewer
    how = _how(given_up)
    forms = _forms(full)
    return [
        next(form for form in forms[how.get(column.heading, FULL)] if form.heading == column.heading)
        for column in full
        if how.get(column.heading) != GONE
    ]


def shortened(full: Sequence[Column], rows: pd.DataFrame, width: int, spare: Sequence[str] = ()) -> list[Column]:
    """Return the columns as they are or, where they do not fit ``width`` characters, those that can in short form.

    spare: headings of those that are left out, in this order, where that is not enough.
    """
    if _fit(full, rows, width):
        return list(full)
    kept = [replace(column, text=column.short) if column.short else column for column in full]
    for heading in spare:
        if not _fit(kept, rows, width):
            kept = [column for column in kept if column.heading != heading]
    return kept


def _fit(shown: Sequence[Column], rows: pd.DataFrame, width: int) -> bool:
    return 1 + sum(1 + _width(column, rows) for column in shown) <= width


def _how(steps: Sequence[Step]) -> dict[str, str]:
    return {name: form for step in steps for name, form in step.items()}


def _forms(full: Sequence[Column]) -> dict[str, list[Column]]:
    """Return the columns in full and, those that have such a form, short."""
    return {FULL: list(full), SHORT: [replace(column, text=column.short) for column in full if column.short]}


def _width(column: Column, rows: pd.DataFrame) -> int:
    return max(map(cell_len, [column.heading, *(column.text(row) for _, row in rows.iterrows())]))
