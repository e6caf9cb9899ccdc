"""Calibration data, as the techniques see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Calibration:
    """token_ids: (samples, window) int64, windows of the calibration corpus. seed: for any choice made from it."""

    token_ids: torch.Tensor
    seed: int = 0

    @classmethod
    def empty(cls) -> Calibration:
        """For techniques that read no data."""
        return cls(torch.empty((0, 0), dtype=torch.int64))
