"""Calibration text, as the build hands it to a technique: its tokens, and the walk that watches what layers read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from squeeze.techniques.block_walk import walk
from squeeze.techniques.contract import Stop, Workplace
from squeeze.techniques.statistics_cache import StatisticsCache


@dataclass(frozen=True)
class CalibrationText:
    """Keeps ``contract.Calibration``.

    token_ids: (samples, window) int64, windows of the calibration corpus. seed: for any choice made from it.

    shared: where statistics of a float model's layer inputs are kept for every technique and bit-width; None: nowhere.
    workplace: where a training keeps what a killed build goes on from.
    """

    token_ids: torch.Tensor
    seed: int = 0
    shared: StatisticsCache | None = None
    workplace: Workplace = field(default_factory=Workplace)

    @classmethod
    def empty(cls) -> CalibrationText:
        """For techniques that read no data."""
        return cls(torch.empty((0, 0), dtype=torch.int64))

    def input_statistics(self, model: nn.Module, *, sequential: bool = False) -> Iterator[Stop]:
        """Walk the blocks in order: (full name, block, statistics of its linear layers' inputs by relative name).

        sequential: inputs have come through the blocks before as the consumer has left them; otherwise, through those
        of the model as it was, and then read from the shared pass where there is one. See ``capture.walk``.
        """
        if sequential or self.shared is None:
            return walk(model, self.token_ids, sequential=sequential)
        return self.shared.input_statistics(model, self.token_ids)
