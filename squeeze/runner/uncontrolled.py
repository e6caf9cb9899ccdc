"""Trained cells that are about to be measured with nothing to compare them with. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell


def uncontrolled(cells: Sequence[Cell], records: Iterable[Record]) -> list[Cell]:
    """The trained cells of a request whose control is neither requested nor on record; records are read if need be."""
    requested = {cell.training for cell in cells if cell.is_control}
    alone = [cell for cell in cells if cell.training and cell.training not in requested]
    if not alone:
        return []
    measured = (Cell.from_json(record.cell) for record in records if record.status is Status.OK)
    known = {cell.training for cell in measured if cell.is_control}
    return [cell for cell in alone if cell.training not in known]


def advice(alone: Sequence[Cell]) -> str:
    """One line about trained cells without control, at least one."""
    others = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
    return (
        f"{alone[0].label}{others}: trained, but without a control, so that a gain may be the text's rather than the "
        "method's; add technique=finetune with the same training_steps and learning_rate"
    )
