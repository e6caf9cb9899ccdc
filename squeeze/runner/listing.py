"""Show what a request will do: its cells as a table, their status, how long they will take. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from statistics import median

from squeeze.records.record import Record, Status
from squeeze.request import axes
from squeeze.request.cell import Cell
from squeeze.request.labels import Labelled, distinct
from squeeze.sources.size import parameters

AXES = axes.headings()
HEADER = ("cell", *AXES, "status", "estimate", "key")
NUMBERS = (*AXES, "estimate")
LONGEST_TABLE = 1000  # rows; laying out 10,000 takes seconds, and nobody reads them

# Where no record helps, figures of a 2-core CPU and a model of 135 M parameters; all but a start grow with the model.
START_SECONDS = 1.0  # of a measuring process
PROCESS_SECONDS = 9.0  # that it measures
TOKENS_PER_SECOND = 1000.0  # scored
USUAL = 135e6  # parameters of a model whose size nothing tells
LONGEST = timedelta.max.total_seconds() // 2  # that can be shown
WHOLE_TEXT = 300_000  # tokens, about those of WikiText-2
ITEM_TOKENS = 100  # of one item of a task, all its choices together


def show(cells: Sequence[Cell], statuses: Mapping[str, str], seconds: Mapping[str, float]) -> None:
    """Print one row a cell: a table on a terminal, tab-separated lines elsewhere and for many cells.

    statuses: by cell key; a cell without one is planned. seconds: by cell key, what measuring the cell will take.
    """
    labels = distinct([Labelled.of(cell) for cell in cells])
    rows = [
        _row(cell, label, statuses.get(cell.key, "planned"), seconds[cell.key])
        for cell, label in zip(cells, labels, strict=True)
    ]
    planned = [seconds[cell.key] for cell in cells if cell.key not in statuses]
    summary = f"{len(cells)} cells, {len(planned)} to measure in about {_duration(sum(planned))}"
    if sys.stdout.isatty() and len(rows) <= LONGEST_TABLE:
        _print_table(rows, summary)
    else:
        print("\n".join("\t".join(row) for row in [HEADER, *rows]))
        print(summary, file=sys.stderr)


def forecast(cells: Sequence[Cell], records: Iterable[Record]) -> dict[str, float]:
    """Return cell key -> seconds of wall time: the median of earlier cells of its kind, else ``default``.

    Of one kind are cells of the same model, technique, runtime, device and protocol, by name.
    """
    taken: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        if record.status is Status.OK:
            taken.setdefault(_kind(Cell.from_json(record.cell)), []).append(sum(record.stages.values()))
    usual = {kind: median(seconds) for kind, seconds in taken.items()}
    return {cell.key: usual.get(_kind(cell), default(cell)) for cell in cells}


def about(seconds: float) -> str:
    """Say a duration as people do: ``about 14 min``, ``about 2 h 20 min``."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    hours, rest = divmod(minutes, 60)
    return f"about {hours} h {rest} min" if hours else f"about {minutes} min"


def default(cell: Cell) -> float:
    """Return seconds by rule of thumb: a build, a scoring, and two processes a round, the baseline's and its own."""
    protocol, size = cell.protocol, (parameters(cell.model) or USUAL) / USUAL
    text = protocol["perplexity"]["tokens"] or WHOLE_TEXT
    tokens = text + len(protocol["tasks"]) * (protocol["items"] or 1000) * ITEM_TOKENS
    processes = 2 + 2 * int(protocol["rounds"])
    return START_SECONDS * processes + size * (PROCESS_SECONDS * processes + float(tokens) / TOKENS_PER_SECOND)


def _kind(cell: Cell) -> tuple[str, ...]:
    groups = (cell.model, cell.technique, cell.runtime, cell.protocol)
    return *(str(group.get("name")) for group in groups), str(cell.runtime.get("device"))


def _row(cell: Cell, label: str, status: str, seconds: float) -> tuple[str, ...]:
    values = cell.step_values
    numbers = (axes.shown(axis, values) for axis in AXES.values())
    return (label, *numbers, status, _duration(seconds), cell.key[:8])


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, LONGEST))))


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
