"""See to it that a model that squeeze fine-tunes itself is fine-tuned, before anything of it is built."""

from __future__ import annotations

from pathlib import Path

from squeeze.core.cache import sealed
from squeeze.request.cell import Cell
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.job import Job
from squeeze.sources import trained
from squeeze.sources.identity import trained_place


def see_to(shop: Executor, cell: Cell, log: Path) -> None:
    """Fine-tune the cell's model in a process of its own, unless it is taken as it is, or the cache has it.

    Whoever else asks for it at the same time waits. Raises StageError when the process does not end well; what it has
    done is gone on with then.
    """

    def make(folder: Path) -> None:
        shop.run(Job(cell, folder, "training", folder), log, "fine-tuning")

    if trained.is_trained(cell.model):
        sealed(trained_place(cell.model), make)
