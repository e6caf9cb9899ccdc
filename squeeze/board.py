"""``squeeze board``: the leaderboard in the terminal, and what measuring it cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from squeeze import excerpt
from squeeze.cell import Cell
from squeeze.drift import Drift, drifts
from squeeze.errors import SqueezeError
from squeeze.store import RecordStore
from squeeze.table import read

PIPE_WIDTH = 120  # columns when the output is no terminal


def show(results: Path, costs: bool = False) -> None:
    """Print the boards of a results folder or, with ``costs``, the seconds that each cell's stages took and the drift.

    Raises SqueezeError when there is no record.
    """
    out = console()
    if costs:
        out.print(_costs(results))
        store = RecordStore(results)
        for drift in drifts(store, store.records()):
            out.print(Text(_in_words(drift), style="dim"), soft_wrap=True)
        return
    for board in excerpt.boards(read(results)):
        _print(out, board)
    out.print(Text(excerpt.LEGEND, style="dim"))


def console() -> Console:
    """Where tables are printed: as wide as the terminal, wide enough where there is none."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, PIPE_WIDTH)
    return made


def _print(out: Console, board: pd.DataFrame) -> None:
    ok, failed = excerpt.parted(board)
    table = Table(
        title=Text(excerpt.title(board)), title_justify="left", box=SIMPLE_HEAD, padding=0, collapse_padding=True
    )
    for heading in excerpt.HEADINGS:
        table.add_column(heading, justify="left" if heading in excerpt.LEFT else "right", overflow="fold")
    for _, row in ok.iterrows():
        table.add_row(*map(Text, excerpt.cells(row)))
    out.print(table)
    for text in excerpt.controls(board):
        out.print(Text(text))
    for _, row in failed.iterrows():
        out.print(Text(excerpt.failure(row), style="yellow"))
    out.print()


def _in_words(drift: Drift) -> str:
    change, low, high = (100 * (value or 0.0) for value in (drift.change.value, drift.change.low, drift.change.high))
    return (
        f"{drift.baseline}: {drift.change.n} control runs, time a token changed by {change:+.1f} % from first to last "
        f"(95 % interval {low:+.1f} to {high:+.1f} %), {100 * drift.spread:.1f} % spread about that"
    )


def _costs(results: Path) -> Table:
    """Wall seconds by cell (all its attempts) and stage; stages in the order of what they took in all."""
    spent: dict[str, Counter[str]] = defaultdict(Counter)
    for record in RecordStore(results).records():
        spent[Cell.from_json(record.cell).label].update(record.stages)
    if not spent:
        raise SqueezeError(f"no record in {results}: expected records/*.json there; `squeeze run` makes them")
    total = sum(spent.values(), Counter[str]())
    stages = [name for name, _ in total.most_common()]
    table = Table(title="wall seconds", title_justify="left", box=SIMPLE_HEAD, show_footer=True)
    table.add_column("cell", footer=f"{len(spent)} cells")
    for name in stages:
        table.add_column(name, footer=f"{total[name]:.1f}", justify="right")
    table.add_column("total", footer=f"{total.total():.1f}", justify="right")
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1].total()):
        table.add_row(Text(label), *(f"{seconds[name]:.1f}" for name in stages), f"{seconds.total():.1f}")
    return table
