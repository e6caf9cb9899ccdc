"""Build an artifact: load the baseline, apply the technique's steps, save. Runs in the limited build process."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from squeeze.artifacts import format as artifact
from squeeze.artifacts.keys import BUILD_INFO, WITHHELD, artifact_key
from squeeze.artifacts.keys import folder as folder_of
from squeeze.artifacts.sentences import labelled
from squeeze.artifacts.step_by_step import Look, accuracy, carried, parted, perplexity, qualities, training, unclaimed
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
from squeeze.sources.corpora import calibration_windows
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import EnergyMeter, Technique, Workplace
from squeeze.techniques.processes import Processes
from squeeze.techniques.statistics_cache import StatisticsCache

Meter = Callable[[Callable[[], Grid | None], str], tuple[Grid | None, "Usage"]]


class Usage(Protocol):
    """Hold the memory of one call: the peak of the process and, on a GPU, what was allocated there, in bytes."""

    @property
    def peak(self) -> int: ...  # noqa: D102 - see above

    @property
    def cuda(self) -> Mapping[str, int]: ...  # noqa: D102


def build(
    cell: Cell,
    folder: Path,
    measured: Meter,
    *,
    counted: Callable[[str], EnergyMeter] | None = None,
    withheld: bool = False,
) -> None:
    """Write the cell's artifact to ``folder``, and what is known of its making to ``build.json`` there.

    measured: calls the work that it is given for a device, and returns its result and the memory that it used
    (``probes.memory.measured``). counted: makes a meter of a device's energy (``probes.energy.Meter``); None: nobody
    counts. withheld: whether what rows are scored on is withheld from this process (``sources.withheld``).

    build.json, which is no part of the artifact's content: content_hash; stages, the seconds of each; seconds_marginal,
    their sum; seconds, the same as if no earlier build had left its shared pass or a training to go on with; peak_bytes
    of the process, loading included; grid of the baseline's weights, and whether it flatters this artifact; dtype,
    parameters and claims; withheld. Where a step trains: training, a list of what each such step took, its loss curve
    included. Where there are several steps, or one that trains: steps, the perplexity before the first and after each,
    on held-out windows of the calibration text that no training has looked at, or a classifier's accuracy on held-out
    sentences (``step_by_step``). Where the recipe has a draft, whose artifact has been built: draft, what is known of
    it; its seconds are among the seconds, and what flatters it flatters the guesses.
    Raises SqueezeError for a step that may not be made, Unsupported when a technique refuses the model, and whatever
    loading the baseline raises.
    """
    techniques = [resolve_step(step) for step in cell.technique["steps"]]
    names = [str(step.get("_target_", "")) for step in cell.technique["steps"]]
    device = str(cell.runtime["device"])
    settle(cell.runtime, int(cell.calibration.get("seed", 0)))
    shared = StatisticsCache(cache_root() / "calibration")
    workplaces = _workplaces(cell, None if cell.training is None else counted, withheld)
    stages = dict.fromkeys(("load", "calibration", "compress", "save"), 0.0)
    trainings: list[dict[str, Any]] = []
    grids: list[Grid | None] = []  # of the baseline, and of the floats that trainings have left
    followed: list[dict[str, Any]] = []

    def make() -> Grid | None:
        with _timed(stages, "load"):
            subject = load_baseline(cell.model, device)
        grids.append(find_grid(subject.model))
        with _timed(stages, "calibration"):
            data = replace(calibration(cell, subject, device, shared), load_draft=partial(_draft, cell, device))
        looked_at, unseen = parted(data.held_out)
        look = _look(cell, subject, replace(data, held_out=unseen), device)
        data = replace(data, held_out=looked_at)
        found: list[float | None] = []
        for name, technique, workplace in zip(names, techniques, workplaces, strict=True):
            if look is not None:
                found.append(look.of(subject.model))
            before = subject.claims
            with _timed(stages, "compress"):
                subject = technique.apply(
                    replace(subject, claims=unclaimed(before)), replace(data, workplace=workplace)
                )
            if workplace.trainings:
                trainings.append(training(name, subject.claims, workplace))
                if "bits" not in subject.claims:  # what a later step rounds are no longer the baseline's weights
                    grids.append(find_grid(subject.model))
            subject = replace(subject, claims=carried(before, subject.claims))
        with _timed(stages, "save"):
            artifact.save(subject, folder)
        if look is not None:  # now that it is saved: no forward can have changed what is
            followed.extend(qualities(look.figure, names, [*found, look.of(subject.model)]))
        return grids[0]

    grid, usage = measured(make, device)
    description, drafted = artifact.describe(folder), _drafted(cell)
    info = {
        "content_hash": artifact.content_hash(folder),
        "stages": stages,
        "seconds_marginal": sum(stages.values()),
        "seconds": sum(stages.values())
        + shared.reused_seconds
        + sum(each.reused_seconds for each in workplaces)
        + drafted.get("seconds", 0.0),
        "peak_bytes": usage.cuda.get("cuda_allocated_bytes", usage.peak),
        "grid": grid and asdict(grid),
        "grid_flattered": flattered(grids[-1], description["claims"]) or drafted.get("grid_flattered", False),
        **{name: description[name] for name in ("dtype", "parameters", "claims")},
        **({"training": trainings} if trainings else {}),
        **({"steps": followed} if followed else {}),
        **({"draft": drafted} if drafted else {}),
        WITHHELD: withheld,
    }
    write_atomically(folder / BUILD_INFO, json.dumps(info, indent=1).encode())
    if Processes.now().is_first:  # of several that train together, the others read what it writes
        for workplace in workplaces:
            workplace.clear()
        for emptied in {workplace.folder.parent for workplace in workplaces if workplace.folder}:
            with suppress(OSError):  # there was none, or somebody is at work in it
                emptied.rmdir()


def calibration(cell: Cell, subject: Subject, device: str, shared: StatisticsCache) -> CalibrationText:
    """Return the windows of text that a cell's calibration names; none when its technique reads no data."""
    if not cell.calibration:
        return CalibrationText.empty()
    tokens, held_out = calibration_windows(cell.calibration, subject.tokenizer)
    has_classes = cell.is_classifier and cell.calibration["corpus"] == sentiment.CORPUS
    return CalibrationText(
        tokens.to(device),
        int(cell.calibration["seed"]),
        shared,
        held_out=held_out.to(device),
        load_baseline=lambda: load_baseline(cell.model, device).model,
        labelled=labelled("train", subject.tokenizer, device) if has_classes else None,
    )


def _draft(cell: Cell, device: str) -> Subject:
    """Load the artifact of a cell's draft, as it is stored, from the cache, where whoever builds the cell has put it.

    Raises SqueezeError where the cell has none, IntegrityError where it is not there, or damaged.
    """
    if cell.draft is None:
        raise SqueezeError(
            f"{cell.label} names no draft, expected steps that make one; give its technique a list draft"
        )
    return artifact.load(folder_of(artifact_key(cell.draft)), device, prepare=False)


def _drafted(cell: Cell) -> dict[str, Any]:
    """Return what is known of the artifact of a cell's draft; nothing where it has none."""
    if cell.draft is None:
        return {}
    info = json.loads((folder_of(artifact_key(cell.draft)) / BUILD_INFO).read_bytes())
    told = ("content_hash", "seconds", "dtype", "parameters", "claims", "grid_flattered")
    return {name: info[name] for name in told}


def _look(cell: Cell, subject: Subject, data: CalibrationText, device: str) -> Look | None:
    """Return how the quality is looked at after each step; None where that says no more than the row, or cannot be."""
    if len(cell.technique["steps"]) < 2 and cell.training is None:
        return None
    if cell.model["kind"] == "classifier" and data.labelled is not None:
        return Look("accuracy_held_out", partial(accuracy, sentences=labelled("held_out", subject.tokenizer, device)))
    if cell.model["kind"] == "causal_lm" and len(data.held_out):
        return Look("perplexity_held_out", partial(perplexity, windows=data.held_out))
    return None


def _workplaces(cell: Cell, counted: Callable[[str], EnergyMeter] | None, withheld: bool) -> list[Workplace]:
    """Return where each step's training keeps its checkpoints: whoever comes to build the same artifact finds them.

    What was trained in the open, by a build from which nothing was withheld, only such another one goes on with.
    """
    way = "" if withheld else "-open"
    folder = cache_root() / "training" / f"{artifact_key(cell)}{way}" if cell.calibration else None
    return [
        Workplace(
            None if folder is None else folder / str(number),
            None if counted is None else counted(str(cell.runtime["device"])),
        )
        for number in range(len(cell.technique["steps"]))
    ]


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages[name] += time.perf_counter() - start


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
