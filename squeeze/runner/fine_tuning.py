"""See to it that a model that squeeze fine-tunes itself is fine-tuned, before anything of it is built."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from squeeze.artifacts.keys import WITHHELD
from squeeze.core.cache import cache_root, sealed
from squeeze.request.cell import Cell
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.job import Job
from squeeze.sources import trained
from squeeze.sources.identity import trained_place


def see_to(shop: Executor, cell: Cell, log: Path) -> None:
    """Train the cell's model in a process of its own, unless it is taken as it is, or the cache has it.

    One that was fine-tuned in the open, by ``pytest benches``, is fine-tuned anew: nothing was withheld from it.
    Whoever else asks for it at the same time waits. Raises StageError when the process does not end well; what it has
    done is gone on with then.
    """

    def make(folder: Path) -> None:
        shop.run(Job(cell, folder, "training", folder), log, "fine-tuning")

    if trained.is_trained(cell.model):
        _forget_unless_withheld(cache_root() / trained_place(cell.model))
        sealed(trained_place(cell.model), make)


def _forget_unless_withheld(place: Path) -> None:
    """Remove a model from the cache unless it says that what rows are scored on was withheld from its training."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there is none, or it is damaged and made anew
        if json.loads((place / trained.INFO).read_bytes()).get(WITHHELD) is not True:
            shutil.rmtree(place)
