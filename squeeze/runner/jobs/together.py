"""Build an artifact in this process: alone, or as one of several that accelerate has started to train together.

Each holds the whole model on a device of its own, and computes its share of every training step
(``techniques.processes``). What rows are scored on is withheld from all of them, for good, as in a build of
``squeeze run``, which finds the artifact of the first one in the cache. The others' are equal to it, and thrown away.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from squeeze.artifacts import keys
from squeeze.core.cache import cache_root, is_intact
from squeeze.core.errors import SqueezeError
from squeeze.request.cell import Cell
from squeeze.runner import fine_tuning, stages
from squeeze.runner.jobs.display import Display
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.outcome import StageError
from squeeze.sources import trained


@dataclass(frozen=True)
class Place:
    """Name the place of this process among those that were started together. rank: from 0; count: of all of them."""

    rank: int = 0
    count: int = 1

    @classmethod
    def given(cls) -> Place:
        """Return what accelerate or torchrun has told this process; alone where neither has started it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def build(cell: Cell, place: Place) -> Path:
    """Return the folder of the cell's artifact: from the cache, or built now by the processes that were started.

    One from which nothing was withheld is built anew, and so is one that is damaged. Raises SqueezeError for several
    processes and a technique that does not train, and where model or texts cannot be fetched or the model not
    fine-tuned; and whatever building raises.
    """
    if place.count > 1 and cell.training is None:
        raise SqueezeError(
            f"{place.count} processes were started for {cell.label}, which has no training to share, expected 1"
        )
    try:
        stages.fetch(cell)
        _see_to_what_it_takes(cell)
    except StageError as error:
        raise SqueezeError(str(error)) from error
    folder = keys.folder(keys.artifact_key(cell))
    if place.rank == 0:
        stages.forget_if_built_in_the_open(folder)
    own = _joined(cell, place) if place.count > 1 else cell
    if not is_intact(folder.parent):  # the same for all: none makes it before all have joined
        _build(own, place)
    return folder


def _see_to_what_it_takes(cell: Cell) -> None:
    """See to it that a model that squeeze fine-tunes is there, and a draft; one process makes them, others wait.

    They are made as a run makes them, in processes of their own: what is withheld from one is withheld for good.
    Raises StageError when that fails.
    """
    if not trained.is_trained(cell.model) and cell.draft is None:
        return
    display = Display({cell.key: cell.label}, {"training": 1})
    with tempfile.TemporaryDirectory() as logs, display, Executor(Path(logs), display) as shop:
        fine_tuning.see_to(shop, cell, Path(logs) / "fine_tuning.log")
        if cell.draft is not None:
            stages.build(shop, cell.draft, Path(logs) / "draft.log")


def _joined(cell: Cell, place: Place) -> Cell:
    """Connect to the other processes, which nobody can once the network is closed; return the cell on its own device.

    Processors are shared evenly.
    """
    import torch
    from accelerate import PartialState
    from torch import distributed

    on_cpu = str(cell.runtime["device"]) == "cpu"
    state = PartialState(cpu=on_cpu)
    device = "cpu" if on_cpu else f"cuda:{state.local_process_index}"
    distributed.all_reduce(torch.zeros(1, device=device))  # NCCL connects when it first sums
    threads = max(1, int(cell.runtime["threads"]) // place.count)
    return replace(cell, runtime={**cell.runtime, "device": device, "threads": threads})


def _build(cell: Cell, place: Place) -> None:
    key = keys.artifact_key(cell)
    own_folder = cache_root() / "artifacts" / f".{key[:16]}_rank_{place.rank}"  # which it may read, unlike others
    own_folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(own_folder)
    try:
        if place.rank == 0:
            keys.made(key, partial(_make, cell))
        else:
            _make(cell, own_folder / "artifact")
    finally:
        shutil.rmtree(own_folder, ignore_errors=True)


def _make(cell: Cell, folder: Path) -> None:
    """Write the artifact to a folder, what rows are scored on being withheld from this process from now on.

    Raises IntegrityError where the build tried to read it, however it ended: what it made is no artifact then.
    """
    from squeeze.artifacts.build import build
    from squeeze.probes.energy import Meter
    from squeeze.probes.memory import measured
    from squeeze.sources.withheld import withhold

    withheld = withhold(cell.model, cell.calibration)
    try:
        build(cell, folder, measured, counted=Meter, withheld=True)
    finally:
        withheld.check()  # before the artifact is sealed
