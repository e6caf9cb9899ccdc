"""The cells of a request as a table: what they are, how they stand, how long they will take."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta

from squeeze.request.cell import Cell

HEADER = ("cell", "bits", "group", "sparsity", "status", "estimate", "key")
NUMBERS = ("bits", "group", "sparsity", "estimate")
LONGEST_TABLE = 1000  # rows; laying out 10,000 takes seconds, and nobody reads them


def show(cells: Sequence[Cell], statuses: Mapping[str, str], seconds: Mapping[str, float]) -> None:
    """Print one row a cell: a table on a terminal, tab-separated lines elsewhere and for many cells.

    statuses: by cell key; a cell without one is planned. seconds: by cell key, what measuring the cell will take.
    """
    rows = [_row(cell, statuses.get(cell.key, "planned"), seconds[cell.key]) for cell in cells]
    planned = [seconds[cell.key] for cell in cells if cell.key not in statuses]
    summary = f"{len(cells)} cells, {len(planned)} to measure in about {_duration(sum(planned))}"
    if sys.stdout.isatty() and len(rows) <= LONGEST_TABLE:
        _print_table(rows, summary)
    else:
        print("\n".join("\t".join(row) for row in [HEADER, *rows]))
        print(summary, file=sys.stderr)


def _row(cell: Cell, status: str, seconds: float) -> tuple[str, ...]:
    grouped = any("group_size" in step for step in cell.technique["steps"])
    group = cell.axis("group_size") or "row" if grouped else None
    values = (cell.axis("bits"), group, cell.axis("sparsity"))
    numbers = ("" if value is None else str(value) for value in values)
    return (cell.label, *numbers, status, _duration(seconds), cell.key[:8])


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _print_table(rows: Sequence[Sequence[str]], summary: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in HEADER:
        table.add_column(name, overflow="fold", justify="right" if name in NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(summary)
