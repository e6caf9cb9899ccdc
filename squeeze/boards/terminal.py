"""Print the leaderboard, what measuring it cost, and what others have published of it: ``squeeze board``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from squeeze.boards import claims, columns, iso, lengths, literature, narrow, serving, summary, terms
from squeeze.boards.columns import Column
from squeeze.boards.drift import Drift, drifts
from squeeze.boards.literature import Comparison
from squeeze.boards.table import read, table
from squeeze.boards.terms import Terms
from squeeze.core.files import write_atomically
from squeeze.core.progress import console
from squeeze.records.record import Record
from squeeze.records.rows import called
from squeeze.records.sanitize import line
from squeeze.records.store import RecordStore

MOST_ROWS = 20  # of a board, at the end of a run


def show(results: Path, costs: bool = False, asked: Terms = terms.NONE) -> None:
    """Print the boards of a results folder or, with ``costs``, the seconds that each cell's stages took and the drift.

    asked: the reader's terms. Raises SqueezeError when there is no record.
    """
    out = console()
    if costs:
        store = RecordStore(results)
        records = list(store.require())
        out.print(_costs(records))
        for drift in drifts(store, records):
            out.print(Text(line(_in_words(drift)), style="dim"), soft_wrap=True)
        return
    frame = read(results, asked)
    shown = [column for board in summary.boards(frame) for column in _print(out, board)]
    out.print(Text(columns.legend(frame, shown), style="dim"))


def show_rows(frame: pd.DataFrame, keys: Collection[str], most: int = MOST_ROWS) -> None:
    """Print, of a table, the rows of the cells with these keys beside their baselines: what a run has measured.

    most: rows of a board; that there are more is said.
    """
    out = console()
    for board in summary.boards(frame[frame["board"].isin(frame["board"][frame["key"].isin(list(keys))])]):
        _print(out, board, keys, most)


def show_serving(results: Path, asked: Terms = terms.NONE, picture: Path | None = None) -> None:
    """Print what serving each row takes, by batch size; cost and longest context by the terms that are asked for.

    Where first tokens were timed at several lengths of the prompt, these have a table of their own. picture: a file to
    draw first tokens by length, and throughput against latency, into; None: nothing.

    Raises SqueezeError when there is no record.
    """
    out = console()
    frame = read(results, asked)
    captions: list[str] = []
    for board in summary.boards(frame):
        lines = serving.by_batch(board)
        out.print(_table(summary.title(board), serving.columns(lines), lines))
        captions += [serving.legend(lines), serving.caption(board)]
        timed = lengths.rows(board)
        if len(timed):
            out.print(_table(f"{summary.title(board)}: first token", lengths.columns(timed), timed))
            for text in lengths.left_out(timed):
                out.print(Text(text, style="yellow"), soft_wrap=True)
            captions.append(lengths.LEGEND)
    for text in dict.fromkeys(filter(None, captions)):
        out.print(Text(text, style="dim"))
    if picture is not None:
        from squeeze.boards.serving_plot import serving_picture  # matplotlib: a second

        write_atomically(picture, serving_picture(frame))


def show_iso(results: Path, most: str, picture: Path | None = None, asked: Terms = terms.NONE) -> None:
    """Print, of each family, the best ranked row within so many bytes, and which families have none.

    most: such as ``100M``. picture: a file to draw what each family reaches, byte by byte, into; None: nothing.
    Raises SqueezeError for a size that is none, and when there is no record.
    """
    budget = iso.budget(most)
    frame, records = _joinable(results, asked)
    out = console()
    for board in summary.boards(frame):
        chosen = iso.best_of_families(board, budget, records)
        if len(chosen):
            shown = narrow.shortened(iso.columns(chosen), chosen, out.width)
            out.print(_table(f"{summary.title(board)}, at most {budget:,.0f} bytes", shown, chosen))
        else:
            out.print(Text(summary.title(board)))
        for text in iso.without(board, chosen, budget):
            out.print(Text(text, style="yellow"))
        out.print()
    out.print(Text(iso.LEGEND, style="dim"))
    if picture is not None:
        from squeeze.boards.family_plot import families  # matplotlib: a second

        write_atomically(picture, families(frame, budget))


def show_claims(results: Path, asked: Terms = terms.NONE) -> None:
    """Print what each compressed row claims to leave of the model, and what it was found to leave and to win.

    Raises SqueezeError when there is no record.
    """
    frame, records = _joinable(results, asked)
    out = console()
    for board in summary.boards(frame):
        rows = claims.joined(board, records)
        if rows.empty:
            continue
        shown = narrow.shortened(claims.columns(rows), rows, out.width, claims.SPARE)
        out.print(_table(summary.title(board), shown, rows))
        for text in claims.unwon(rows):
            out.print(Text(line(text), style="yellow"), soft_wrap=True)
        out.print()
    out.print(Text(claims.LEGEND, style="dim"))


def show_literature(results: Path) -> None:
    """Print measured perplexities beside published ones, and of rows without a counterpart the fields that differ.

    What a source does not say of a number that stands in the table is named below it.

    Raises SqueezeError when there is no record.
    """
    records = list(RecordStore(results).require())
    joined = literature.join(records, literature.numbers())
    out = console()
    if joined.comparisons:
        sources = list(dict.fromkeys(comparison.published.source for comparison in joined.comparisons))
        out.print(_literature(joined.comparisons, sources))
        for number, source in enumerate(sources, 1):
            out.print(Text(f"[{number}] {source}", style="dim"), soft_wrap=True)
        for text in _unstated(joined.comparisons, sources):
            out.print(Text(text, style="dim"), soft_wrap=True)
    for why, pairs in groupby(sorted(joined.alone, key=itemgetter(1)), key=itemgetter(1)):
        labels = ", ".join(cell.label for cell, _ in pairs)
        out.print(Text(line(f"no counterpart: {labels}: {why}"), style="yellow"), soft_wrap=True)
    if joined.unmeasured:
        text = f"{len(joined.unmeasured)} published numbers have no row here; `squeeze run sweep=paper` measures them"
        out.print(Text(f"{text}, where the hub is reachable", style="dim"), soft_wrap=True)


def _joinable(results: Path, asked: Terms) -> tuple[pd.DataFrame, dict[str, Record]]:
    """Return the table of a results folder, and its records by attempt. Raises SqueezeError when there is none."""
    records = list(RecordStore(results).require())
    return table(map(asked.applied, records), asked.margins), {record.attempt: record for record in records}


def _print(
    out: Console, board: pd.DataFrame, keys: Collection[str] | None = None, most: int | None = None
) -> list[Column]:
    """Print a board, or what of it has these keys; return the columns that it was shown in."""
    ok, failed = summary.parted(board)
    if keys is not None:
        board = board[board["key"].isin(list(keys))]
        failed = failed[failed["key"].isin(list(keys))]
    every = summary.shown(ok, keys)
    rows = every if most is None else every.head(most)
    shown = narrow.fitting(rows, out.width) if len(rows) else []
    if shown:
        out.print(_table(summary.title(board), shown, rows))
    else:
        out.print(Text(summary.title(board)))
    if len(rows) < len(every):
        out.print(Text(f"{len(every) - len(rows)} more rows: `squeeze board` shows all"))
    for text in summary.controls(board):
        out.print(Text(text))
    for _, row in failed.iterrows():
        out.print(Text(summary.failure(row), style="yellow"))
    for text in (*summary.below(rows), *columns.gaps(rows, shown)):
        out.print(Text(text, style="dim"))
    out.print()
    return shown


def _table(title: str, shown: Sequence[Column], rows: pd.DataFrame) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    for column in shown:
        table.add_column(
            column.heading, justify="left" if column.left else "right", overflow="fold", no_wrap=column.left
        )
    for _, row in rows.iterrows():
        table.add_row(*(Text(column.text(row)) for column in shown))
    return table


def _literature(comparisons: list[Comparison], sources: list[str]) -> Table:
    table = Table(title="perplexity, measured and published", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("row", "measured", "published", "ratio", "tolerance", "", "source"):
        table.add_column(heading, justify="left" if heading in ("row", "") else "right", overflow="fold")
    for comparison in comparisons:
        published = comparison.published
        table.add_row(
            Text(line(comparison.cell.label)),
            f"{comparison.measured:.2f}",
            f"{published.value:g}",
            f"{comparison.ratio:.3f}",
            f"{published.tolerance:.0%}",
            "within" if comparison.agrees else "outside",
            f"\\[{sources.index(published.source) + 1}]",
        )
    return table


def _unstated(comparisons: list[Comparison], sources: list[str]) -> Iterator[str]:
    """Say, of each source, what it does not state and was therefore not compared, and of which rows."""
    rows: dict[tuple[int, tuple[str, ...]], list[str]] = defaultdict(list)
    for each in comparisons:
        if each.unstated:
            rows[sources.index(each.published.source) + 1, each.unstated].append(each.cell.label)
    for (number, names), labels in rows.items():
        yield line(f"not stated by [{number}], so not compared: {', '.join(names)}: {', '.join(dict.fromkeys(labels))}")


def _in_words(drift: Drift) -> str:
    change, low, high = (100 * (value or 0.0) for value in (drift.change.value, drift.change.low, drift.change.high))
    return (
        f"{drift.baseline}: {drift.change.n} control runs, time a token changed by {change:+.1f} % from first to last "
        f"(95 % interval {low:+.1f} to {high:+.1f} %), {100 * drift.spread:.1f} % spread about that"
    )


def _costs(records: Sequence[Record]) -> Table:
    """Tabulate wall seconds by cell (all its attempts) and stage; stages in the order of what they took in all."""
    spent: dict[str, Counter[str]] = defaultdict(Counter)
    for label, record in zip(called(records), records, strict=True):
        spent[label].update(record.stages)
    total = sum(spent.values(), Counter[str]())
    stages = [name for name, _ in total.most_common()]
    table = Table(title="wall seconds", title_justify="left", box=SIMPLE_HEAD, show_footer=True)
    table.add_column("cell", footer=f"{len(spent)} cells")
    for name in stages:
        table.add_column(Text(line(name)), footer=f"{total[name]:.1f}", justify="right")
    table.add_column("total", footer=f"{total.total():.1f}", justify="right")
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1].total()):
        table.add_row(Text(line(label)), *(f"{seconds[name]:.1f}" for name in stages), f"{seconds.total():.1f}")
    return table
