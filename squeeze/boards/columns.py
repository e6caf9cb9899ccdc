"""Define a board's columns for people, and say what they and their gaps mean.

Every figure that a row does not have is a dash, and the reason stands below the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from squeeze.boards import summary
from squeeze.boards.flags import star
from squeeze.boards.words import DAGGER, DASH, interval, is_baseline, mark, number, rank, short_label, size
from squeeze.records.sanitize import line

REALITIES = {"B": "bytes_real", "M": "memory_real", "C": "compute_real"}
# Of each task's accuracy, whose column has the name before the ending.
TASK = re.compile(r"acc_(?!pooled)\w+(?<!_delta)_stderr")
ITSELF = "the uncompressed model is what it is measured against"
SIGNS = (
    "Intervals are of 95 %; ▲ better, ▼ worse, ▲= or ▼= yet within the margin, = equal within the margin ({margins}), "
    "~ undecided, ? failed, corrected (Holm) over the board."
)


@dataclass(frozen=True)
class Column:
    """Define a column for people.

    text: of an ok row; a dash where the row has no such figure. words: what it shows. gap: why a row may lack it.
    where: the table's column without which it is left out; "": always shown. short: the same in less room.
    """

    heading: str
    text: Callable[[pd.Series], str]
    left: bool = False
    where: str = ""
    words: str = ""
    gap: str = ""
    short: Callable[[pd.Series], str] | None = None


def _perplexity(name: str) -> Callable[[pd.Series], str]:
    return lambda row: number(row.get(name), ".2f" if row.get(name, 0.0) < 1000 else ".1e")


def _of_compressed(text: Callable[[pd.Series], str]) -> Callable[[pd.Series], str]:
    """Leave out what the uncompressed model has of itself: 0 by definition is no result."""
    return lambda row: DASH if is_baseline(row) else text(row)


def _change(row: pd.Series) -> str:
    return f"{number(row.get('perplexity_delta'), '+.3g')} {mark(row, 'perplexity_delta')}".rstrip()


def _marked_perplexity(row: pd.Series) -> str:
    own = "" if is_baseline(row) else mark(row, "perplexity_delta")
    return f"{_perplexity('perplexity')(row)} {own}".rstrip()


def _accuracy(row: pd.Series) -> str:
    """Say the share of right answers: of all tasks' items or, of records before that figure, the tasks' mean."""
    tasks = [row[str(name).removesuffix("_stderr")] for name in row.index if TASK.fullmatch(str(name))]
    pooled = row.get("acc_pooled")
    value = pooled if pd.notna(pooled) else pd.Series(tasks, dtype=float).mean()
    own = "" if is_baseline(row) else mark(row, "acc_pooled_delta")
    return f"{number(value, '.1%')} {own}".rstrip()


def _points(row: pd.Series) -> str:
    """Say the change of accuracy in points."""
    parts = [f"acc_pooled_delta{end}" for end in ("", "_low", "_high")]
    scaled = {name: 100 * row[name] for name in parts if pd.notna(row.get(name))}
    in_points: dict[Any, Any] = {**row.to_dict(), **scaled}
    return interval(pd.Series(in_points), "acc_pooled_delta", "+.1f")


def _short_points(row: pd.Series) -> str:
    return f"{number(100 * row.get('acc_pooled_delta', float('nan')), '+.1f')} {mark(row, 'acc_pooled_delta')}".rstrip()


def _real(row: pd.Series) -> str:
    return "".join(letter for letter, name in REALITIES.items() if row[name] is True) or DASH


COLUMNS = (
    Column(
        "rank",
        rank,
        words="from 1 + how many rows are shown better in perplexity to how many are not shown worse",
        gap="no perplexity to rank it by, or a flag that takes the rank from it",
    ),
    Column(
        "group",
        lambda row: DASH if pd.isna(row["group"]) else str(row["group"]),
        left=True,
        where="group",
        words="rows of one letter are not told apart",
    ),
    Column("technique", lambda row: f"{row['name'] if 'name' in row else short_label(row)}{star(row)}", left=True),
    Column(
        "runtime",
        lambda row: line(str(row["runtime"])) if row.get("runtime") else DASH,
        left=True,
        where="runtime",
        words="what computes: perplexity, KL and speed are its own, and compared with those of the eager model",
    ),
    Column("bits", lambda row: number(row["effective_bits"], ".2f"), words="effective, from the bytes on disk"),
    Column("size", lambda row: size(row["bytes"]), words="of the weight files"),
    Column("tok/s", lambda row: number(row["decode_tokens_per_s"], ".1f"), words="decoded, one request at a time"),
    Column(
        "speed-up",
        lambda row: interval(row, "decode_speedup", ".2f"),
        words="of decoding, against the uncompressed model in its faster dtype",
        gap="not timed beside the uncompressed model in processes of their own, as `squeeze run` does",
        short=lambda row: f"{number(row['decode_speedup'], '.2f')} {mark(row, 'decode_speedup')}".rstrip(),
    ),
    Column(
        "accepted",
        lambda row: number(row.get("accepted_tokens"), ".2f"),
        where="accepted_tokens",
        words="guessed tokens a decoding step, on average, of rows that draft",
    ),
    Column(
        "perplexity",
        _perplexity("perplexity"),
        gap="not scored",
        short=_marked_perplexity,
    ),
    Column(
        "change",
        _of_compressed(lambda row: interval(row, "perplexity_delta", "+.3g")),
        words="of perplexity, from the uncompressed model's",
        gap="not scored beside the uncompressed model",
        short=_of_compressed(_change),
    ),
    Column(
        "other text",
        _perplexity("perplexity_ood"),
        where="perplexity_ood",
        words="perplexity outside the domain of calibration, of rows that are calibrated",
    ),
    Column(
        "KL",
        _of_compressed(lambda row: number(row.get("kl_divergence"), ".2g")),
        where="kl_divergence",
        words="how far predictions are from the uncompressed model's, nats a token",
        gap="not measured",
    ),
    Column(
        "top-1",
        _of_compressed(lambda row: number(row.get("top1_agreement"), ".0%")),
        where="top1_agreement",
        words="share of tokens where both predict the same",
        gap="not measured",
    ),
    Column(
        "accuracy",
        _accuracy,
        where="tasks",
        words="of the tasks' items, all together (in old records: the tasks' mean)",
        gap="asked no tasks",
    ),
    Column(
        "real",
        _real,
        left=True,
        words=f"B small on disk, M in memory, C arithmetic of low bits or less of it, {DASH} none of these",
    ),
    Column("ok", lambda row: str(row["coverage"]), words="the technique's cells that succeeded"),
)

OF = {column.heading: column for column in COLUMNS}
SELDOM = (OF["runtime"], OF["accepted"])  # of which few boards have anything
# Of a board of classifiers, which are ranked by accuracy and predict no text.
CLASSIFIED = (
    replace(
        OF["rank"],
        words="from 1 + how many rows are shown better in accuracy to how many are not shown worse",
        gap="no answers to rank it by, or a flag that takes the rank from it",
    ),
    *(OF[heading] for heading in ("group", "technique", "bits", "size")),
    Column("texts/s", lambda row: number(row.get("items_per_s"), ".1f"), words="classified, one at a time"),
    Column(
        "speed-up",
        lambda row: interval(row, "encode_speedup", ".2f"),
        words="of classifying one text, against the uncompressed model in its faster dtype",
        gap=OF["speed-up"].gap,
        short=lambda row: f"{number(row.get('encode_speedup'), '.2f')} {mark(row, 'encode_speedup')}".rstrip(),
    ),
    replace(OF["accuracy"], where="", words="share of right answers", gap="not scored"),
    Column(
        "change",
        _of_compressed(_points),
        words="of accuracy, in points, from the uncompressed model's",
        gap="not scored beside the uncompressed model",
        short=_of_compressed(_short_points),
    ),
    Column(
        "kept",
        lambda row: number(row.get("retained_accuracy"), ".1%"),
        where="retained_accuracy",
        words="share of the accuracy that is kept at least (one-sided 95 %)",
    ),
    replace(OF["KL"], words="how far class probabilities are from the uncompressed model's, nats a text"),
    replace(OF["top-1"], words="share of texts that both put into one class"),
    *(OF[heading] for heading in ("real", "ok")),
)


def columns(rows: pd.DataFrame) -> list[Column]:
    """Return the columns that have something to show of these rows, which are of one board."""
    defined = CLASSIFIED if summary.classified(rows) else COLUMNS
    return [column for column in defined if not column.where or any(text != DASH for text in _texts(column, rows))]


def legend(frame: pd.DataFrame, shown: Sequence[Column] | None = None) -> str:
    """Say what the columns and signs of a table mean, and by which margins its verdicts are.

    shown: the columns that are seen; None: all that its boards may have, those of SELDOM where it has any such figure.
    """
    if shown is None:
        kinds = {summary.classified(board) for board in summary.boards(frame)}
        shown = [*(COLUMNS if False in kinds else ()), *(CLASSIFIED if True in kinds else ())]
        shown = [column for column in shown if column not in SELDOM or column.where in frame]
    seen = {(column.heading, column.words) for column in shown if column.words}
    every = dict.fromkeys((*COLUMNS, *CLASSIFIED))
    told = [_meaning(column) for column in every if (column.heading, column.words) in seen]
    margins = frame["margins"].iloc[0].replace(",", ", ")
    return " ".join([*told, SIGNS.format(margins=margins)])


def _meaning(column: Column) -> str:
    heading = f"{column.heading[0].upper()}{column.heading[1:]}"
    return f"{heading if column in COLUMNS else f'Of classifiers, {column.heading}'}: {column.words}."


def gaps(rows: pd.DataFrame, shown: Sequence[Column]) -> Iterator[str]:
    """Yield why rows have a dash, a line for the columns and rows of each reason."""
    own = [row for _, row in rows.iterrows() if not row["name"].endswith(DAGGER)]
    found: dict[tuple[str, str], list[str]] = {}
    for column in (column for column in shown if column.gap):
        lacking = [row for row in own if column.text(row) == DASH]
        for reason, is_own in ((ITSELF, True), (column.gap, False)):
            names = [row["name"] for row in lacking if _of_itself(column, row) is is_own]
            if names:
                who = "all rows" if len(names) == len(own) > 1 else ", ".join(names)
                found.setdefault((reason, who), []).append(column.heading)
    for (reason, who), headings in found.items():
        yield line(f"{DASH} {', '.join(headings)} ({who}): {reason}")


def _of_itself(column: Column, row: pd.Series) -> bool:
    return is_baseline(row) and column.heading in ("change", "KL", "top-1")


def _texts(column: Column, rows: pd.DataFrame) -> list[str]:
    return [column.text(row) for _, row in rows.iterrows()]
