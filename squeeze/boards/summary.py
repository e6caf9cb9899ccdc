"""Say a table in the few columns that people read, the same in the terminal and in leaderboard.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from squeeze.boards.controls import NONE, OVER
from squeeze.records.answers import sign
from squeeze.records.record import UNSTEADY, Status
from squeeze.records.sanitize import line

LEGEND = (
    "Rank: from 1 + how many rows are shown better in perplexity to how many are not shown worse; rows of one group "
    "(letter) are not told apart. Bits: effective, from the bytes on disk. Speed-up and change of perplexity: against "
    "the uncompressed model, with 95 % intervals; ▲ better, ▼ worse, ▲= or ▼= yet within the margin, = equal within "
    "the margin ({margins}), ~ undecided, ? failed (see verdict_reason in leaderboard.csv), corrected (Holm) over the "
    "board. Other text: perplexity outside the domain "
    "of calibration, of rows that are calibrated. KL: how far predictions are from the uncompressed model's, nats a "
    "token. Top-1: share of tokens where both predict the same. Real: B small on disk, M in memory, C low-bit "
    "arithmetic. Ok: the technique's cells that succeeded. * see the flags in leaderboard.csv."
)
REALITIES = {"B": "bytes_real", "M": "memory_real", "C": "compute_real"}


@dataclass(frozen=True)
class Column:
    """Define a column for people.

    text: of an ok row; empty where the row has no such figure. where: the table's column without which it is left out,
    as it always is where there is little room; "": always shown.
    """

    heading: str
    text: Callable[[pd.Series], str]
    left: bool = False
    where: str = ""


def legend(frame: pd.DataFrame) -> str:
    """Say what the columns and signs of a table mean, and by which margins its verdicts are."""
    return LEGEND.format(margins=frame["margins"].iloc[0].replace(",", ", "))


def rank(row: pd.Series) -> str:
    """Return the places that tests leave a row: ``3`` or ``3-6``; "" for one that is not ranked."""
    if pd.isna(row["rank_low"]):
        return ""
    low, high = int(row["rank_low"]), int(row["rank_high"])
    return str(low) if low == high else f"{low}\N{EN DASH}{high}"


def mark(row: pd.Series, name: str) -> str:
    """Return the sign of a row's verdict on the estimate ``name``."""
    return sign(row.get(f"{name}_verdict"), row.get(f"{name}_within", float("nan")))


def boards(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the boards of a table, in reading order."""
    return [board for _, board in frame.groupby("board", sort=False)]


def title(board: pd.DataFrame) -> str:
    """Say what all rows of a board share."""
    first = board.iloc[0]
    return line(
        f"{first['model']}, protocol {first['protocol']}, {first['device']}, machine {first['fingerprint'][:8]}"
    )


def parted(board: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ok rows of a board, and the failed ones."""
    ok = board["status"] == Status.OK
    return board[ok], board[~ok]


def short_label(row: pd.Series) -> str:
    """Return the row's label without the model's name, which the title of its board holds: ``rtn-4-g64``."""
    return line(str(row["label"]).removeprefix(f"{row['model']}-"))


def star(row: pd.Series) -> str:
    """Return the star of a row whose flags must be seen; that its times were unsteady says more of the machine."""
    return " *" if set(filter(None, row["flags"].split("; "))) - {UNSTEADY} else ""


def _perplexity(name: str) -> Callable[[pd.Series], str]:
    return lambda row: _number(row[name], ".2f" if row[name] < 1000 else ".1e")


COLUMNS = (
    Column("rank", rank),
    Column("group", lambda row: "" if pd.isna(row["group"]) else str(row["group"]), left=True, where="group"),
    Column("technique", lambda row: short_label(row) + star(row), left=True),
    Column("bits", lambda row: _number(row["effective_bits"], ".2f")),
    Column("MB", lambda row: _number(row["bytes"] / 1e6, ".0f")),
    Column("tok/s", lambda row: _number(row["decode_tokens_per_s"], ".1f")),
    Column("speed-up", lambda row: interval(row, "decode_speedup", ".2f")),
    Column("perplexity", _perplexity("perplexity")),
    Column("change", lambda row: interval(row, "perplexity_delta", "+.3g")),
    Column("other text", _perplexity("perplexity_ood"), where="perplexity_ood"),
    Column("KL", lambda row: _number(row["kl_divergence"], ".2g")),
    Column("top-1", lambda row: _number(row["top1_agreement"], ".0%")),
    Column("real", lambda row: "".join(letter for letter, name in REALITIES.items() if row[name] is True), left=True),
    Column("ok", lambda row: str(row["coverage"])),
)


def columns(board: pd.DataFrame, *, wide: bool = False) -> list[Column]:
    """Return the columns to show of a board; ``wide``: those too that only some boards have, where this one does."""
    return [column for column in COLUMNS if not column.where or (wide and _any(board, column.where))]


def failure(row: pd.Series) -> str:
    """Say which row has no figures, and why: ``bnb_int8-3: unsupported: 3 bits, expected 8``."""
    return line(f"{short_label(row)}: {row['status']}: {row['reason']}")


def controls(board: pd.DataFrame) -> list[str]:
    """Set each ok row that is trained against its control: ``qat-3-g64: perplexity 35.2, its control's 20.1; ...``."""
    if "control" not in board:
        return []
    return [_control(row) for _, row in parted(board)[0].iterrows() if pd.notna(row["control"])]


def _control(row: pd.Series) -> str:
    if row["control"] == NONE:
        return line(f"{short_label(row)}: control: none; measure technique=finetune with the same training settings")
    ratio = interval(row, OVER, ".3g")
    parts = (
        _pair(row, "perplexity", "perplexity"),
        f"ratio {ratio}" if ratio else "",
        _pair(row, "perplexity_ood", "on other text"),
    )
    return line(f"{short_label(row)}: {'; '.join(part for part in parts if part)}")


def _pair(row: pd.Series, name: str, words: str) -> str:
    own, control = row.get(name), row[f"control_{name}"]
    return "" if pd.isna(own) or pd.isna(control) else f"{words} {own:.4g}, its control's {control:.4g}"


def _any(board: pd.DataFrame, name: str) -> bool:
    return name in board and bool(board[name].notna().any())


def _number(value: Any, digits: str) -> str:
    return "" if pd.isna(value) else format(value, digits)


def interval(row: pd.Series, name: str, digits: str) -> str:
    """Say an estimate, its interval and its verdict: ``1.65 [1.60, 1.70] ▲``."""
    value, low, high = (row.get(column) for column in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(value):
        return ""
    unsigned = digits.removeprefix("+")
    bounds = "" if pd.isna(low) else f" [{low:{unsigned}}, {high:{unsigned}}]"
    return f"{value:{digits}}{bounds} {mark(row, name)}".rstrip()
