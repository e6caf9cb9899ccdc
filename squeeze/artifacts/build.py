"""Build an artifact: load the baseline, apply the technique's steps, save. Runs in the limited build process."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from squeeze.artifacts import format as artifact
from squeeze.artifacts.keys import BUILD_INFO, WITHHELD, artifact_key
from squeeze.artifacts.sentences import labelled
from squeeze.core import plugins
from squeeze.core.cache import cache_root
from squeeze.core.errors import SqueezeError
from squeeze.core.files import write_atomically
from squeeze.core.process import settle
from squeeze.models.load import load_baseline
from squeeze.models.prequantized import Grid, find_grid, flattered
from squeeze.models.subject import Subject
from squeeze.request.cell import Cell
from squeeze.request.steps import check_step
from squeeze.sources import sentiment
from squeeze.sources.corpora import calibration_tokens
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Technique, Workplace
from squeeze.techniques.statistics_cache import StatisticsCache

Meter = Callable[[Callable[[], Grid | None], str], tuple[Grid | None, "Usage"]]


class Usage(Protocol):
    """Hold the memory of one call: the peak of the process and, on a GPU, what was allocated there, in bytes."""

    @property
    def peak(self) -> int: ...  # noqa: D102 - see above

    @property
    def cuda(self) -> Mapping[str, int]: ...  # noqa: D102


def build(cell: Cell, folder: Path, measured: Meter, *, withheld: bool = False) -> None:
    """Write the cell's artifact to ``folder``, and what is known of its making to ``build.json`` there.

    measured: calls the work that it is given for a device, and returns its result and the memory that it used
    (``probes.memory.measured``). withheld: whether what rows are scored on is withheld from this process
    (``sources.withheld``).

    build.json, which is no part of the artifact's content: content_hash; stages, the seconds of each; seconds_marginal,
    their sum; seconds, the same as if no earlier build had left its shared pass or a training to go on with; peak_bytes
    of the process, loading included; grid of the baseline's weights, and whether it flatters this artifact; dtype,
    parameters and claims; withheld.
    Raises SqueezeError for a step that may not be made, Unsupported when a technique refuses the model, and whatever
    loading the baseline raises.
    """
    techniques = [resolve_step(step) for step in cell.technique["steps"]]
    device = str(cell.runtime["device"])
    settle(cell.runtime, int(cell.calibration.get("seed", 0)))
    shared = StatisticsCache(cache_root() / "calibration")
    workplaces = _workplaces(cell)
    stages: dict[str, float] = {}

    def make() -> Grid | None:
        with _timed(stages, "load"):
            subject = load_baseline(cell.model, device)
        grid = find_grid(subject.model)
        with _timed(stages, "calibration"):
            data = calibration(cell.calibration, subject, device, shared)
        with _timed(stages, "compress"):
            for technique, workplace in zip(techniques, workplaces, strict=True):
                subject = technique.apply(subject, replace(data, workplace=workplace))
        with _timed(stages, "save"):
            artifact.save(subject, folder)
        return grid

    grid, usage = measured(make, device)
    description = artifact.describe(folder)
    info = {
        "content_hash": artifact.content_hash(folder),
        "stages": stages,
        "seconds_marginal": sum(stages.values()),
        "seconds": sum(stages.values()) + shared.reused_seconds + sum(each.reused_seconds for each in workplaces),
        "peak_bytes": usage.cuda.get("cuda_allocated_bytes", usage.peak),
        "grid": grid and asdict(grid),
        "grid_flattered": flattered(grid, description["claims"]),
        **{name: description[name] for name in ("dtype", "parameters", "claims")},
        WITHHELD: withheld,
    }
    write_atomically(folder / BUILD_INFO, json.dumps(info, indent=1).encode())
    for workplace in workplaces:
        workplace.clear()


def calibration(request: Mapping[str, Any], subject: Subject, device: str, shared: StatisticsCache) -> CalibrationText:
    """Return the windows of text that a cell's calibration names; none when its technique reads no data."""
    if not request:
        return CalibrationText.empty()
    tokens = calibration_tokens(request, subject.tokenizer)
    sentences = labelled("train", subject.tokenizer, device) if request["corpus"] == sentiment.CORPUS else None
    return CalibrationText(tokens.to(device), int(request["seed"]), shared, labelled=sentences)


def _workplaces(cell: Cell) -> list[Workplace]:
    """Return where each step's training keeps its checkpoints: whoever comes to build the same artifact finds them."""
    if not cell.calibration:
        return [Workplace(None) for _ in cell.technique["steps"]]
    folder = cache_root() / "training" / artifact_key(cell)
    return [Workplace(folder / str(number)) for number in range(len(cell.technique["steps"]))]


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - start


def resolve_step(step: Mapping[str, Any]) -> Technique:
    """Return the technique of a step such as ``{_target_: rtn.RoundToNearest, bits: 4}``.

    Raises SqueezeError for any target that is no technique of squeeze or of an installed plugin (see
    ``request.steps.check_step``; here the resolved object is checked as well, so no alias passes), and for fields that
    it does not take.
    """
    made = plugins.load(check_step(step).found)
    if not _is_technique(made):
        raise SqueezeError(f"{step['_target_']!r} is refused: it is no technique")
    technique: Technique = made(**{name: value for name, value in step.items() if name != "_target_"})
    return technique


def _is_technique(made: type[Any]) -> bool:
    return dataclasses.is_dataclass(made) and callable(getattr(made, "apply", None))
