"""Say of rows that draft how many guesses were accepted and what that won, by kind of prompt: lines below a board."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from squeeze.boards.words import interval, number
from squeeze.records.sanitize import line

SPEEDUP = "drafting_speedup_"
KIND = re.compile(rf"{SPEEDUP}([a-z]+)")


def told(rows: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each row that drafts: ``x drafts: code 2.10 accepted a step (52%), 1.31 times as fast; ...``.

    rows: of a table, with what each is called in column ``name``. Times as fast: as the same model without guesses.
    """
    kinds = [found[1] for name in rows.columns if (found := KIND.fullmatch(str(name)))]
    for _, row in rows.iterrows():
        parts = [_of_kind(row, kind) for kind in kinds if pd.notna(row.get(f"{SPEEDUP}{kind}"))]
        if parts:
            yield line(f"{row['name']} drafts: {'; '.join(parts)}")


def _of_kind(row: pd.Series, kind: str) -> str:
    share = row.get(f"acceptance_{kind}")
    of_guesses = "" if pd.isna(share) else f" ({number(share, '.0%')})"
    accepted = f"{number(row.get(f'accepted_tokens_{kind}'), '.2f')} accepted a step{of_guesses}"
    return f"{kind} {accepted}, {interval(row, f'{SPEEDUP}{kind}', '.2f')} times as fast"
