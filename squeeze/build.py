"""Building an artifact: load the baseline, apply the technique's steps, save. Runs in the limited build process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from squeeze import artifact, corpora
from squeeze.calibration import Calibration
from squeeze.cell import Cell
from squeeze.files import write_atomically
from squeeze.models import load_baseline
from squeeze.probes.memory import measured
from squeeze.process import settle
from squeeze.steps import resolve_step
from squeeze.subject import Subject

INFO = "build.json"


def build(cell: Cell, folder: Path) -> None:
    """Write the cell's artifact to ``folder``, and what is known of its making to ``build.json`` there.

    build.json: content_hash; seconds (the cold total) and those of each stage; peak_bytes (of the build, loading
    included); dtype, parameters and claims of the artifact. It is not part of the artifact's content.
    Raises SqueezeError for a step that may not be made, Unsupported when a technique refuses the model, and whatever
    loading the baseline raises.
    """
    techniques = [resolve_step(step) for step in cell.technique["steps"]]
    settle(cell.runtime, int(cell.calibration.get("seed", 0)))
    stages: dict[str, float] = {}

    def make() -> None:
        with _timed(stages, "load"):
            subject = load_baseline(cell.model, str(cell.runtime["device"]))
        with _timed(stages, "calibration"):
            data = calibration(cell.calibration, subject)
        with _timed(stages, "compress"):
            for technique in techniques:
                subject = technique.apply(subject, data)
        with _timed(stages, "save"):
            artifact.save(subject, folder)

    _, usage = measured(make, str(cell.runtime["device"]))
    description = artifact.describe(folder)
    info = {
        "content_hash": artifact.content_hash(folder),
        "seconds": sum(stages.values()),
        "stages": stages,
        "peak_bytes": usage.peak,
        **{name: description[name] for name in ("dtype", "parameters", "claims")},
    }
    write_atomically(folder / INFO, json.dumps(info, indent=1).encode())


def calibration(request: Mapping[str, Any], subject: Subject) -> Calibration:
    """The windows of consecutive tokens that a cell's calibration names; none when its technique reads no data."""
    if not request:
        return Calibration.empty()
    samples, window = int(request["samples"]), int(request["window"])
    tokens = corpora.tokens(request["corpus"], subject.tokenizer, samples * window)
    return Calibration(tokens.reshape(samples, window), int(request["seed"]))


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - start
