"""Tell a process what to do: one stage of one cell, in one round. Standard library only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from squeeze.core.errors import IntegrityError
from squeeze.request.cell import Cell

MACHINE = "machine.json"  # in the output folder of the stage that measures the machine

Stage = Literal["build", "latency", "machine", "quality", "training"]


@dataclass(frozen=True)
class Job:
    """Define the job file of `pytest benches --cell FILE`.

    artifact: folder of the artifact (the build stage makes it), or of the model that the training stage fine-tunes;
    out: folder for the samples, written once, at the end;
    baseline: samples folder of the baseline's quality stage (None for a baseline, and where nothing is scored);
    baseline_artifact: its artifact (None for the quality of a baseline).
    """

    cell: Cell
    artifact: Path
    stage: Stage
    out: Path
    round: int = 0
    baseline: Path | None = None
    baseline_artifact: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, from which `from_json` makes an equal job."""
        return {
            "cell": self.cell.to_json(),
            "artifact": str(self.artifact),
            "stage": self.stage,
            "out": str(self.out),
            "round": self.round,
            "baseline": self.baseline and str(self.baseline),
            "baseline_artifact": self.baseline_artifact and str(self.baseline_artifact),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Job":
        """Return the job that `to_json` described. Raises KeyError or TypeError when a field is missing or unknown."""
        folders = {name: data[name] and Path(data[name]) for name in ("baseline", "baseline_artifact")}
        required = {"artifact": Path(data["artifact"]), "out": Path(data["out"]), "cell": Cell.from_json(data["cell"])}
        return cls(**{**data, **folders, **required})

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Return the job in a file. Raises IntegrityError when it is no job file."""
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path.name} is not a job file: {type(error).__name__}: {error}") from error
