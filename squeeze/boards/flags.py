"""Say in words what a row's flags, and its failed verdicts, mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pandas as pd

from squeeze.records.record import (
    CONTENDED,
    DECODES_OTHERWISE,
    ENCODES_OTHERWISE,
    GRID_FLATTERED,
    IMPLAUSIBLE,
    NOT_CAUSAL,
    NOT_REALISED,
    UNSTEADY,
    WARMING,
)
from squeeze.records.sanitize import line

# Of a flag that is not here, its own words must do.
WORDS = {
    CONTENDED: "other work ran beside it, which slows some kernels more than others; measure it anew",
    UNSTEADY: "half of its processes or more did not settle; its intervals hold what that costs",
    WARMING: "every process moved the same way from start to end, so that its times support no verdict",
    GRID_FLATTERED: "the uncompressed weights lie on a grid that its codes fall on: another model would lose more",
    NOT_REALISED: "a recount found other than what its technique claims; `squeeze show` says what",
    IMPLAUSIBLE: "better on the text than its distance from the uncompressed model allows; it has no rank",
    DECODES_OTHERWISE: "the tokens that were timed are not those that the scored model chooses; it has no rank",
    NOT_CAUSAL: "later tokens move the scores of earlier ones, so that its perplexity says nothing; it has no rank",
    ENCODES_OTHERWISE: "the classifier that was timed answers otherwise than the one that is scored; it has no rank",
}
INFORMING = frozenset({UNSTEADY})  # of the machine more than of the row: it gets no star


def of(row: pd.Series) -> list[str]:
    """Return the flags of a table's row."""
    return [flag for flag in row["flags"].split("; ") if flag]


def star(row: pd.Series) -> str:
    """Return the star of a row whose flags must be seen."""
    return " *" if set(of(row)) - INFORMING else ""


def explained(rows: pd.DataFrame, name: str = "name") -> Iterator[str]:
    """Yield a line for each flag and each failed verdict of the rows: which rows have it, and what it means.

    rows: of a table, with what each is called in column ``name``.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for _, row in rows.iterrows():
        for flag in of(row):
            found[flag].append(row[name])
    for flag, names in sorted(found.items(), key=lambda item: item[0] in INFORMING):
        sign = "" if flag in INFORMING else "* "
        words = f": {WORDS[flag]}" if flag in WORDS else ""
        yield line(f"{sign}{flag} ({_all_or_some(names, len(rows))}){words}")
    yield from _failed(rows, name)


def _failed(rows: pd.DataFrame, name: str) -> Iterator[str]:
    """Yield why verdicts are "?", a line for each reason and its rows; what a flag says already is not said again."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for _, row in rows.iterrows():
        for part in filter(None, row["verdict_reason"].split("; ")):
            figure, _, reason = part.partition(": ")
            if reason.partition(":")[0] not in of(row):
                found[reason, figure].append(row[name])
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (reason, figure), names in found.items():
        together[reason, _all_or_some(names, len(rows))].append(figure)
    for (reason, who), figures in together.items():
        yield line(f"? {', '.join(figures)} ({who}): {reason}")


def _all_or_some(names: list[str], of_rows: int) -> str:
    return "all rows" if len(names) == of_rows > 1 else ", ".join(names)
