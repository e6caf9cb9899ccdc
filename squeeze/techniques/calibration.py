"""Give a technique the calibration text: its tokens, and statistics of what the layers read when the model reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.block_walk import walk
from squeeze.techniques.contract import Labelled, Stop, Workplace
from squeeze.techniques.statistics_cache import StatisticsCache


def _no_windows() -> torch.Tensor:
    return torch.empty((0, 0), dtype=torch.int64)


def _no_baseline() -> nn.Module:
    raise SqueezeError("there is no uncompressed model to load, expected that of a cell; give load_baseline")


def _no_draft() -> Subject:
    raise SqueezeError("there is no draft to load, expected steps that make one; give the recipe a list draft")


@dataclass(frozen=True)
class CalibrationText:
    """Hold the calibration text of a build, as ``contract.Calibration`` defines it.

    token_ids: (samples, window) int64, windows of the calibration corpus. seed: for any choice made from it.

    shared: where statistics of a float model's layer inputs are kept for every technique and bit-width; None: nowhere.
    workplace: where a training keeps what a killed build goes on from.
    held_out: (windows, window) int64, further windows of the corpus, which nothing is trained on.
    load_baseline: loads the cell's uncompressed model. load_draft: loads the artifact of its draft, as it is stored.
    labelled: the sentences of the corpus with their classes; None where they have none.
    """

    token_ids: torch.Tensor
    seed: int = 0
    shared: StatisticsCache | None = None
    workplace: Workplace = field(default_factory=Workplace)
    held_out: torch.Tensor = field(default_factory=_no_windows)
    load_baseline: Callable[[], nn.Module] = _no_baseline
    labelled: Labelled | None = None
    load_draft: Callable[[], Subject] = _no_draft

    @classmethod
    def empty(cls) -> CalibrationText:
        """Return a calibration text without tokens, for techniques that read no data."""
        return cls(_no_windows())

    def baseline(self) -> nn.Module:
        """Load the cell's uncompressed model once more. Raises SqueezeError where this text belongs to no cell."""
        return self.load_baseline()

    def draft(self) -> Subject:
        """Load the artifact of the cell's draft, as it is stored. Raises SqueezeError where there is none."""
        return self.load_draft()

    def input_statistics(self, model: nn.Module, *, sequential: bool = False) -> Iterator[Stop]:
        """Yield (full name, block, statistics of its linear layers' inputs by relative name) for each block, in order.

        sequential: inputs have come through the blocks before as the consumer has left them; otherwise, through those
        of the model as it was, and then read from the shared pass where there is one. See ``block_walk.walk``.
        Raises Unsupported for a model whose blocks share layers.
        """
        _check_own(model)
        if sequential or self.shared is None:
            return walk(model, self.token_ids, sequential=sequential)
        return self.shared.input_statistics(model, self.token_ids)


def _check_own(model: nn.Module) -> None:
    """Raise Unsupported where a layer stands in several places: each has inputs of its own, and one choice serves all.

    A step that looked at one place after the other would compress such a layer twice.
    """
    first: dict[nn.Module, str] = {}
    for name, layer in architecture.block_linears(model).items():
        if first.setdefault(layer, name) != name:
            raise Unsupported(
                f"{name} is the same layer as {first[layer]}, expected one place each, whose inputs are looked at; put"
                " this step before the one that shares, or take one that reads no text, such as rtn or hqq"
            )
