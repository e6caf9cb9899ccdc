"""Know which environments a cell wants beside the core's: of its engine, or of a step's library. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from squeeze.core.environment import ENGINE
from squeeze.core.errors import SqueezeError
from squeeze.request.cell import Cell
from squeeze.request.steps import find
from squeeze.runner.jobs.job import Job
from squeeze.runtimes import environments
from squeeze.runtimes.environments import Environment

MEASURING = ("latency", "quality")  # stages that load what the engine runs


def wanted(cell: Cell) -> list[Environment]:
    """Return the environments that building and measuring a cell take, none of them made; each once."""
    found = {each.name: each for each in (_of_build(cell), environments.of(cell.runtime)) if each is not None}
    return list(found.values())


def check_device(cell: Cell) -> None:
    """Raise Unsupported where the environment of a cell's engine is not for its device: making it would be in vain."""
    engine = environments.of(cell.runtime)
    if engine is not None:
        engine.check_for(str(cell.runtime["device"]))


def interpreter(job: Job) -> Path | None:
    """Return the interpreter of the environment that a job's process runs in; None for that of the core.

    Raises Unsupported where it cannot be made, SqueezeError where steps want several.
    """
    if job.stage in MEASURING:
        environment = environments.of(job.cell.runtime)
    else:
        environment = _of_build(job.cell) if job.stage == "build" else None
    return None if environment is None else environment.made()


def placed(place: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Return the environment (``environment.describe``) as a cell's figures depend on it: with its engine's packages.

    Raises SqueezeError where those have no exact versions.
    """
    engine = environments.of(cell.runtime)
    return dict(place) if engine is None else {**place, ENGINE: engine.pins()}


def _of_build(cell: Cell) -> Environment | None:
    """Return the environment that the library of a step lies in. Raises SqueezeError where they want several."""
    named = (environments.named_by(find(step["_target_"]).found) for step in cell.technique["steps"])
    found = {each.name: each for each in named if each is not None}
    if len(found) > 1:
        raise SqueezeError(
            f"{cell.label}: its steps want the environments {' and '.join(sorted(found))}, expected one; build it in "
            "two recipes"
        )
    return next(iter(found.values()), None)
