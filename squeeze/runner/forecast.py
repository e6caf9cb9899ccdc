"""How long cells will take, judged by what like cells took before. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell

# Where no record helps, figures of a 2-core CPU and a model of 135 M parameters.
PROCESS_SECONDS = 10.0  # a measuring process, imports included
TOKENS_PER_SECOND = 1000.0  # scored
WHOLE_TEXT = 300_000  # tokens, about those of WikiText-2
ITEM_TOKENS = 100  # of one item of a task, all its choices together


def forecast(cells: Sequence[Cell], records: Iterable[Record]) -> dict[str, float]:
    """Cell key -> seconds of wall time: the median of earlier cells of its kind, else ``default``.

    Of one kind are cells of the same model, technique, runtime, device and protocol, by name.
    """
    taken: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        if record.status is Status.OK:
            taken.setdefault(_kind(Cell.from_json(record.cell)), []).append(sum(record.stages.values()))
    usual = {kind: median(seconds) for kind, seconds in taken.items()}
    return {cell.key: usual.get(_kind(cell), default(cell)) for cell in cells}


def default(cell: Cell) -> float:
    """Seconds by rule of thumb: a build, a scoring, and two processes a round, the baseline's and the cell's own."""
    protocol = cell.protocol
    text = protocol["perplexity"]["tokens"] or WHOLE_TEXT
    tokens = text + len(protocol["tasks"]) * (protocol["items"] or 1000) * ITEM_TOKENS
    return PROCESS_SECONDS * (2 + 2 * int(protocol["rounds"])) + float(tokens) / TOKENS_PER_SECOND


def _kind(cell: Cell) -> tuple[str, ...]:
    groups = (cell.model, cell.technique, cell.runtime, cell.protocol)
    return *(str(group.get("name")) for group in groups), str(cell.runtime.get("device"))
