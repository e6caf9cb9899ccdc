"""Pick the rows that keep given bounds, best first, such as the best under 80 MB and 20 ms: ``squeeze pick``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from squeeze.boards import flags, summary, terms
from squeeze.boards.table import flagged, table
from squeeze.boards.terms import Terms
from squeeze.boards.words import short_label
from squeeze.core.errors import SqueezeError, hint
from squeeze.core.progress import console
from squeeze.records.items import unpacked
from squeeze.records.ranking import ranking, ranking_by_answers
from squeeze.records.record import UNRANKED, Record, Status
from squeeze.records.store import RecordStore

# Columns of which more is better; of all others, less is.
MORE = re.compile(
    r"(acc_.*|top1_agreement|retained_accuracy|first_divergence|decode_tokens_per_s|items_per_s|\w+_speedup"
    r"|compression_ratio|mbu|mfu|sparsity|max_context_estimated)(_b\d+|_at_\d+)?"
)
TESTED, ANSWERED = "perplexity", "acc_pooled"  # differences are tested, paired by block of tokens or by item
NORMAL = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True)
class Bound:
    """Bound a column: the most (or, with ``least``, the least) that a row may have of it."""

    column: str
    value: float
    least: bool

    @classmethod
    def of(cls, text: str, least: bool) -> Bound:
        """Read the bound that a text such as ``bytes=80M`` names. Raises SqueezeError when it names none."""
        column, _, value = text.partition("=")
        if (found := terms.amount(value)) is None:
            raise SqueezeError(f"{text!r} is no bound; expected COLUMN=NUMBER such as bytes=80M (k, M or G)")
        return cls(column.strip(), found, least)

    def kept(self, frame: pd.DataFrame) -> pd.Series:
        """Tell which rows of a table keep it; one without a value does not."""
        values = numbers(frame, self.column)
        return values.ge(self.value) if self.least else values.le(self.value)

    def __str__(self) -> str:
        return f"{self.column} {'>=' if self.least else '<='} {self.value:,.6g}"


def show(
    results: Path, most: Sequence[str], least: Sequence[str], by: str | None = None, asked: Terms = terms.NONE
) -> int:
    """Print the ok rows that keep all bounds, each board's best in column ``by`` first; returns 0, or 1 for none.

    Rows that a flag takes the rank from (``records.record.UNRANKED``) are none of them.

    most, least: such as ``bytes=80M``. by: None is perplexity, or accuracy where no row has a perplexity. asked: terms
    whose columns may be bounded, too. A row is said to tie where no difference to the board's best is shown.
    Raises SqueezeError for a bound that is none, a column that is not there or holds no numbers, and without records.
    """
    bounds = [*(Bound.of(text, least=False) for text in most), *(Bound.of(text, least=True) for text in least)]
    found = list(RecordStore(results).require())
    records = {record.attempt: record for record in found}
    frame = table(map(asked.applied, found))
    by = by or (ANSWERED if summary.classified(frame) else TESTED)
    frame = (
        frame[(frame["status"] == Status.OK) & ~flagged(frame, *UNRANKED)]
        .assign(**{by: numbers(frame, by)})
        .dropna(subset=by)
    )
    kept = {bound: bound.kept(frame) for bound in bounds}
    out = console()
    picked = frame[np.logical_and.reduce([*kept.values(), frame[by].notna()])]
    if picked.empty:
        out.print(f"no row of {len(frame)} keeps all bounds")
        for bound, keeps in kept.items():
            out.print(Text(f"  {bound}: {keeps.sum()} do"))
        return 1
    columns = list(dict.fromkeys([by, *(bound.column for bound in bounds)]))
    for board in summary.boards(picked):
        out.print(_table(best_first(board, by), columns, records))
    for text in flags.explained(picked.assign(name=[short_label(row) for _, row in picked.iterrows()])):
        out.print(Text(text, style="dim"))
    return 0


def numbers(frame: pd.DataFrame, column: str) -> pd.Series:
    """Return a column as floats. Raises SqueezeError when the table has none of that name, or it holds no numbers."""
    if column not in frame.columns:
        raise SqueezeError(f"no column {column!r}; {hint(column, frame.columns)}")
    values = pd.to_numeric(frame[column], errors="coerce").astype(float)
    if values.isna().all():
        raise SqueezeError(f"column {column!r} holds no numbers in these records")
    return values


def best_first(board: pd.DataFrame, by: str) -> pd.DataFrame:
    """Sort the rows by a column, the better figure first, be it the greater or the smaller one."""
    return board.sort_values(by, ascending=MORE.fullmatch(by) is None, kind="stable", ignore_index=True)


def ties(board: pd.DataFrame, by: str, records: Mapping[str, Record]) -> npt.NDArray[np.bool_]:
    """Tell which rows (rows,) are not shown to be worse than the first.

    In perplexity: the paired t-test over blocks of tokens, corrected (Holm) for all pairs of these rows; in accuracy of
    classifiers: McNemar's test over items, corrected likewise. In other columns: where their intervals or spreads
    meet, and those without one are equal.
    """
    losses = [records[attempt].block_nll for attempt in board["attempt"]]
    if by == TESTED and len({len(each) for each in losses}) == 1 and losses[0]:
        return np.asarray(ranking(np.array(losses)).low == 1)
    answers = [records[attempt].item_correct for attempt in board["attempt"]]
    if by == ANSWERED and all(answers) and len({answer.partition(":")[0] for answer in answers}) == 1:
        return np.asarray(ranking_by_answers(np.stack([unpacked(answer) for answer in answers])).low == 1)
    value = board[by].to_numpy()
    error = NORMAL * board.get(f"{by}_stderr", pd.Series(0.0, board.index)).fillna(0.0).to_numpy(dtype=float)
    low, high = (
        board[name].fillna(board[by]).to_numpy(dtype=float) if name in board else value + distance
        for name, distance in ((f"{by}_low", -error), (f"{by}_high", error))
    )
    return np.asarray((low <= high[0]) & (high >= low[0]))


def _table(board: pd.DataFrame, columns: Sequence[str], records: Mapping[str, Record]) -> Table:
    tied = ties(board, columns[0], records)
    made = Table(title=Text(summary.title(board)), title_justify="left", box=SIMPLE_HEAD)
    for heading in ("row", *columns, ""):
        made.add_column(Text(heading), justify="left" if heading in ("row", "") else "right", overflow="fold")
    for number, row in board.iterrows():
        name = short_label(row) + flags.star(row)
        remark = "best" if number == 0 else "tie: not told apart" if tied[int(str(number))] else ""
        made.add_row(Text(name), *(_figure(row[column]) for column in columns), remark)
    return made


def _figure(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,.4g}"
