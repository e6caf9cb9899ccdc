"""Say how long the first token takes by the length of the prompt: a line for each row, a column for each length."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import pandas as pd

from squeeze.boards import summary, words
from squeeze.boards.columns import Column
from squeeze.records.sanitize import line

TIMED = re.compile(r"ttft_ms_at_([1-9]\d*)")
LEFT_OUT = "prompts_left_out"
LEGEND = (
    "First token: milliseconds from a prompt of so many tokens to its first token, one request at a time, median over "
    "rounds; signs: of its speed against the uncompressed model's."
)


def rows(board: pd.DataFrame) -> pd.DataFrame:
    """Return the ok rows of a board whose first tokens were timed by length, or left out at all of them."""
    ok, _ = summary.parted(board)
    asked = [name for name in ok.columns if TIMED.fullmatch(str(name)) or name == LEFT_OUT]
    return ok[ok[asked].notna().any(axis=1)] if asked else ok.head(0)


def columns(timed: pd.DataFrame) -> list[Column]:
    """Return the row's name and a column for each length, shorter ones first, that some of these rows have."""
    known = [name for name in timed.columns if TIMED.fullmatch(str(name)) and timed[name].notna().any()]
    tokens = sorted(int(name.rpartition("_")[2]) for name in known)
    named = Column("technique", lambda row: words.short_label(row), left=True)
    return [named, *(_column(length) for length in tokens)]


def left_out(timed: pd.DataFrame) -> Iterator[str]:
    """Yield which lengths were not timed and why, a line for all rows that say the same."""
    said: dict[str, list[str]] = defaultdict(list)
    for _, row in timed.iterrows():
        if isinstance(why := row.get(LEFT_OUT), str):
            said[why].append(words.short_label(row))
    for why, names in said.items():
        who = "all rows" if len(names) == len(timed) > 1 else ", ".join(names)
        yield line(f"not timed ({who}): {why}")


def _column(length: int) -> Column:
    def text(row: pd.Series) -> str:
        sign = words.mark(row, f"ttft_speedup_at_{length}")
        return f"{words.number(row[f'ttft_ms_at_{length}'], '.4g')} {sign}".rstrip()

    return Column(f"{length:,}", text)
