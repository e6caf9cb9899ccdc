"""Define what a technique is given, and what it must return.

It gets a subject and what calibration shows of it, never the machinery that reads the text: a paper that imports this
file alone keeps its key when a progress bar is reworded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from squeeze.models.subject import Subject


@dataclass(frozen=True)
class InputStatistics:
    """Hold statistics of the inputs x of one linear layer over the calibration tokens.

    hessian: (in_features, in_features) float32, the mean of x x^T. It is the Hessian of the layer's squared output
        error up to a factor, for every output row alike; the mean of ||D x||^2 is tr(D H D^T).
    mean_abs: (in_features,) float32, the mean of |x|.
    low, high: (in_features,) float32, the range of x, widened to hold zero.
    tokens: how many inputs were seen; 0 for a layer that never ran (an expert that was never chosen).
    """

    hessian: torch.Tensor
    mean_abs: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    tokens: int

    @property
    def max_abs(self) -> torch.Tensor:
        """Return the largest |x| of each input channel, (in_features,)."""
        return torch.maximum(self.high, -self.low)

    @property
    def norms(self) -> torch.Tensor:
        """Return the l2 norm of each input channel over all tokens, (in_features,)."""
        return (self.hessian.diagonal() * self.tokens).sqrt()


Stop = tuple[str, nn.Module, Mapping[str, InputStatistics]]


@dataclass(frozen=True)
class Labelled:
    """Hold sentences and the class of each.

    input_ids, attention_mask: (sentences, tokens) int64, special tokens included, padded at the end.
    labels: (sentences,) int64.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def rows(self, numbers: torch.Tensor) -> Labelled:
        """Return the sentences with these numbers, (n,) int64, padded to the longest of them."""
        mask = self.attention_mask[numbers]
        longest = int(mask.sum(dim=1).max())
        return Labelled(self.input_ids[numbers, :longest], mask[:, :longest], self.labels[numbers])


def same_inputs(statistics: Mapping[str, InputStatistics]) -> list[tuple[list[str], InputStatistics]]:
    """Group the layers of a block that read the same inputs; return each group with the statistics of these inputs."""
    groups: dict[int, tuple[list[str], InputStatistics]] = {}
    for name, inputs in statistics.items():
        groups.setdefault(id(inputs), ([], inputs))[0].append(name)
    return list(groups.values())


class Point(NamedTuple):
    """Hold a point of a loss curve: after ``step`` steps, the loss of that step and that of the held-out windows.

    None: there was no step yet; nobody looked at the held-out windows.
    """

    step: int
    loss: float | None
    held_out: float | None = None


class EnergyMeter(Protocol):
    """Count the energy between each ``start`` and the ``stop`` after it; joules: None where nothing counts."""

    joules: float | None

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> None:
        """Add the joules since ``start``."""


@dataclass
class Workplace:
    """Hold where a step's trainings keep their checkpoints, and what has come of them.

    folder: for this step alone; None: nothing is kept. meter: counts the energy of training; None: nobody does.
    reused_seconds: what the steps had cost that a killed training did, and this one goes on from.
    seconds: of all trainings that ended, those reused included; joules: likewise, None where some were not counted.
    curve: their losses; the steps of each are counted on from those of the one before. trainings: how many ended.
    """

    folder: Path | None = None
    meter: EnergyMeter | None = None
    reused_seconds: float = 0.0
    seconds: float = 0.0
    joules: float | None = 0.0
    curve: list[Point] = field(default_factory=list)
    trainings: int = 0

    @property
    def checkpoint(self) -> Path | None:
        """Return the path of the last checkpoint of the training that goes on; None where nothing is kept."""
        return None if self.folder is None else self.folder / f"training_{self.trainings}.safetensors"

    def ended(self, curve: Sequence[Point], seconds: float, joules: float | None) -> None:
        """Keep what has come of a training; the next one has a checkpoint of its own."""
        before = self.curve[-1].step if self.curve else 0
        self.curve += [point._replace(step=before + point.step) for point in curve]
        self.seconds += seconds
        self.joules = None if self.joules is None or joules is None else self.joules + joules
        self.trainings += 1

    def clear(self) -> None:
        """Delete all checkpoints: what was trained is safe elsewhere."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Calibration(Protocol):
    """Define what a technique may know of calibration text: its tokens, and what layers read as the model reads it."""

    @property
    def token_ids(self) -> torch.Tensor:
        """Return (samples, window) int64, windows of the calibration corpus; (0, 0) where a cell names none."""

    @property
    def held_out(self) -> torch.Tensor:
        """Return (windows, window) int64, further windows of it that no step trains on; (0, 0) where there are none."""

    @property
    def seed(self) -> int:
        """Return the seed of any choice that is made from the text."""

    @property
    def labelled(self) -> Labelled | None:
        """Return the sentences of the corpus with their classes; None for a corpus whose sentences have none."""

    @property
    def workplace(self) -> Workplace:
        """Return where a training keeps what a killed build goes on from."""

    def baseline(self) -> nn.Module:
        """Load the cell's uncompressed model once more: in eval mode, without gradients, of its dtype, on its device.

        It is the teacher of a subject that was compressed. Raises SqueezeError where no cell is built.
        """

    def draft(self) -> Subject:
        """Load the artifact of the cell's draft, as it is stored: of the same model, made by the steps of its own.

        Raises SqueezeError where no cell is built, or its recipe names no draft.
        """

    def input_statistics(self, model: nn.Module, *, sequential: bool = False) -> Iterator[Stop]:
        """Yield (full name, block, statistics of its linear layers' inputs by relative name), block after block.

        sequential: inputs have come through the blocks before as the consumer has left them; otherwise, through those
        of the model as it was.
        """


class Technique(Protocol):
    """Define a technique: a frozen dataclass in a family's folder; its fields are the keys of its YAML."""

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject. Raises Unsupported before doing any work."""
        ...
