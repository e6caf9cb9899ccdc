"""The few columns that people read, the same in the terminal and in leaderboard.md."""

from __future__ import annotations

from typing import Any

import pandas as pd

from squeeze.boards.controls import NONE, OVER
from squeeze.boards.table import NO_DIFFERENCE, NO_VERDICT
from squeeze.records.record import Status
from squeeze.records.sanitize import line

HEADINGS = ("rank", "technique", "bits", "MB", "tokens/s", "speed-up", "perplexity", "change", "top-1", "real", "ok")
LEFT = {"technique", "real"}
LEGEND = (
    "Rank: 1 + how many rows are significantly better in perplexity. Bits: effective, from the bytes on disk. "
    "Speed-up and change of perplexity: against the uncompressed model, with 95 % intervals; ▲ better, ▼ worse, "
    "= no difference shown, ? no verdict, corrected (Holm) over the board. Top-1: share of tokens where both models "
    "predict the same. Real: B small on disk, M in memory, C low-bit arithmetic. Ok: the technique's cells that "
    "succeeded. * see the flags in leaderboard.csv."
)
SIGNS = {"faster": " ▲", "better": " ▲", "slower": " ▼", "worse": " ▼", NO_DIFFERENCE: " =", NO_VERDICT: " ?"}
REALITIES = {"B": "bytes_real", "M": "memory_real", "C": "compute_real"}


def boards(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The boards of a table, in reading order."""
    return [board for _, board in frame.groupby("board", sort=False)]


def title(board: pd.DataFrame) -> str:
    """What all rows of a board share."""
    first = board.iloc[0]
    return line(
        f"{first['model']}, protocol {first['protocol']}, {first['device']}, machine {first['fingerprint'][:8]}"
    )


def parted(board: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ok rows of a board, and the failed ones."""
    ok = board["status"] == Status.OK
    return board[ok], board[~ok]


def short_label(row: pd.Series) -> str:
    """The row's label without the model's name, which the title of its board holds: ``rtn-4-g64``."""
    return line(str(row["label"]).removeprefix(f"{row['model']}-"))


def cells(row: pd.Series) -> tuple[str, ...]:
    """The text under each of HEADINGS for an ok row; what it does not have is empty."""
    return (
        _number(row["rank"], "d"),
        short_label(row) + (" *" if row["flags"] else ""),
        _number(row["effective_bits"], ".2f"),
        _number(row["bytes"] / 1e6, ".0f"),
        _number(row["decode_tokens_per_s"], ".1f"),
        _interval(row, "decode_speedup", ".2f"),
        _number(row["perplexity"], ".2f" if row["perplexity"] < 1000 else ".1e"),
        _interval(row, "perplexity_delta", "+.3g"),
        _number(row["top1_agreement"], ".0%"),
        "".join(letter for letter, name in REALITIES.items() if row[name] is True),
        str(row["coverage"]),
    )


def failure(row: pd.Series) -> str:
    """Which row has no figures, and why: ``bnb_int8-3: unsupported: 3 bits, expected 8``."""
    return line(f"{short_label(row)}: {row['status']}: {row['reason']}")


def controls(board: pd.DataFrame) -> list[str]:
    """Each ok row that is trained, against its control: ``qat-3-g64: perplexity 35.2, its control's 20.1; ...``."""
    if "control" not in board:
        return []
    return [_control(row) for _, row in parted(board)[0].iterrows() if pd.notna(row["control"])]


def _control(row: pd.Series) -> str:
    if row["control"] == NONE:
        return line(f"{short_label(row)}: control: none; measure technique=finetune with the same training settings")
    ratio = _interval(row, OVER, ".3g")
    parts = (
        _pair(row, "perplexity", "perplexity"),
        f"ratio {ratio}" if ratio else "",
        _pair(row, "perplexity_ood", "on other text"),
    )
    return line(f"{short_label(row)}: {'; '.join(part for part in parts if part)}")


def _pair(row: pd.Series, name: str, words: str) -> str:
    own, control = row.get(name), row[f"control_{name}"]
    return "" if pd.isna(own) or pd.isna(control) else f"{words} {own:.4g}, its control's {control:.4g}"


def _number(value: Any, digits: str) -> str:
    return "" if pd.isna(value) else format(value, digits)


def _interval(row: pd.Series, name: str, digits: str) -> str:
    value, low, high = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(value):
        return ""
    bounds = "" if pd.isna(low) else f" [{low:{digits}}, {high:{digits}}]"
    return f"{value:{digits}}{bounds}{SIGNS.get(str(row.get(f'{name}_verdict')), '')}"
