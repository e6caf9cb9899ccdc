"""Write the published tables: leaderboard.csv, one CSV per family, leaderboard.md and pareto.png.

The same records give the same CSV bytes in any clone: rows are in reading order, floats have six significant digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from squeeze.boards import columns, lengths, plots, serving, summary, terms
from squeeze.boards.columns import Column
from squeeze.boards.table import read
from squeeze.boards.terms import Terms
from squeeze.core.errors import SqueezeError
from squeeze.core.files import read_small, write_atomically

FORMULA = r"\s*[=+\-@]|\t"  # what makes a spreadsheet evaluate the text that follows
LINE_BREAKS = r"[\r\n]+"
LARGEST_TABLE = 2**28  # bytes: those of 100,000 rows
EXCERPT_ROWS = 50
EXCERPT_BOARDS = 10


def collate(results: Path, out: Path, asked: Terms = terms.NONE) -> pd.DataFrame:
    """Write the leaderboards of ``results``/records into ``out``, with what a reader asks of them; return the table.

    Files that are no records are named on stderr and left alone. Raises SqueezeError when there is no record, or
    ``out`` cannot be written to.
    """
    frame = read(results, asked)
    try:
        for name, content in texts(frame).items():
            write_atomically(out / name, content)
        write_atomically(out / "pareto.png", plots.pareto(frame))
    except OSError as error:
        raise SqueezeError(f"cannot write leaderboards to {out} ({error.strerror}); name another folder") from error
    return frame


def texts(frame: pd.DataFrame) -> dict[str, bytes]:
    """Return what is published of a table as text, by file name: all its rows, those of each family, and an excerpt."""
    header, *rows = csv(frame).splitlines(keepends=True)
    families = {
        f"leaderboard_{family}.csv": b"".join([header, *(rows[position] for position in positions)])
        for family, positions in frame.groupby(frame["family"].map(_file_name)).indices.items()
    }
    return {"leaderboard.csv": b"".join([header, *rows]), **families, "leaderboard.md": markdown(frame).encode()}


def terms_of(results: Path) -> Terms:
    """Return the terms that a folder's leaderboard.csv was made with.

    Raises as `Terms.of_csv` does, IntegrityError for what is no file, OSError for one that cannot be read.
    """
    path = results / "leaderboard.csv"
    return Terms.of_csv(read_small(path, LARGEST_TABLE)) if path.exists() else terms.NONE


def csv(frame: pd.DataFrame) -> bytes:
    """Return the table as UTF-8 CSV, a line for each row.

    Text that a spreadsheet would take for a formula is preceded by an apostrophe; line breaks become spaces.
    """
    exact = {name: _harmless(frame[name]) for name in frame.columns if not pd.api.types.is_float_dtype(frame[name])}
    return frame.assign(**exact).to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def markdown(frame: pd.DataFrame) -> str:
    """Return a readable excerpt: the first rows of each board, then what failed and why."""
    boards = summary.boards(frame)
    parts = ["# Leaderboard", columns.legend(frame), *map(_board, boards[:EXCERPT_BOARDS])]
    if (left_out := len(boards) - EXCERPT_BOARDS) > 0:
        parts.append(f"{left_out} more boards are in leaderboard.csv.")
    return "\n\n".join(parts) + "\n"


def _board(board: pd.DataFrame) -> str:
    ok, failed = summary.parted(board)
    shown = ok.head(EXCERPT_ROWS)
    rows = summary.shown(shown)
    reasons = [f"- {_plain(summary.failure(row))}" for _, row in failed.head(EXCERPT_ROWS).iterrows()]
    controls = [f"- {_plain(text)}" for text in summary.controls(board.head(EXCERPT_ROWS))]
    chosen = columns.columns(rows)
    remarks = [f"- {_plain(text)}" for text in (*summary.below(rows), *columns.gaps(rows, chosen))]
    lines = _lines(chosen, rows) if len(rows) else []
    parts = [f"## {_plain(summary.title(board))}", *map("\n".join, (lines, remarks, controls, reasons))]
    if (left_out := len(board) - len(shown) - len(reasons)) > 0:
        parts.append(f"{left_out} more rows are in leaderboard.csv.")
    parts += _serving(board.head(EXCERPT_ROWS))
    return "\n\n".join(part for part in parts if part)


def _serving(board: pd.DataFrame) -> list[str]:
    """Return the board as people who serve models read it; nothing where it has none of their figures."""
    lines = serving.by_batch(board)
    if not serving.shown(lines):
        return []
    table = "\n".join(_lines(serving.columns(lines), lines))
    parts = ["### Serving", serving.legend(lines), _plain(serving.caption(board)), table]
    timed = lengths.rows(board)
    if len(timed):
        curves = "\n".join(_lines(lengths.columns(timed), timed))
        left_out = "\n".join(f"- {_plain(text)}" for text in lengths.left_out(timed))
        parts += ["### First token by length of the prompt", lengths.LEGEND, curves, left_out]
    return parts


def _lines(shown: Sequence[Column], rows: pd.DataFrame) -> list[str]:
    headings = [column.heading for column in shown]
    alignment = [":--" if column.left else "--:" for column in shown]
    cells = [[_plain(column.text(row)) for column in shown] for _, row in rows.iterrows()]
    return [f"| {' | '.join(line)} |" for line in (headings, alignment, *cells)]


def _plain(text: str) -> str:
    """Escape a text so that Markdown shows it as it is: a record's words are not markup."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)


def _harmless(column: pd.Series) -> pd.Series:
    words = column.astype("string").str.replace(LINE_BREAKS, " ", regex=True)
    if pd.api.types.is_numeric_dtype(column):
        return words
    return words.mask(words.str.match(FORMULA), "'" + words)


def _file_name(family: str) -> str:
    """Make a file name of a record's family, which is foreign text: no separator, no dot."""
    return re.sub(r"[^A-Za-z0-9-]", "_", family)
