"""Share the rows of a training step among processes that work on it together, each with the whole model on a device.

Whoever starts them joins them, as accelerate does (``runner.jobs.together``); a process that nobody joined is alone.
Their gradients are summed (Li et al. 2020, "PyTorch Distributed", arXiv:2006.15704, section 3), so that all hold the
same weights after every step; these differ from those of a single process by the order of the sums, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Processes:
    """Name this process among those that train together. rank: its number, from 0; count: of all of them."""

    rank: int = 0
    count: int = 1

    @classmethod
    def now(cls) -> Processes:
        """Return the place of this process in the group that it has joined; alone where it has joined none."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Tell whether this is the one that writes files."""
        return self.rank == 0

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows (n, ...) that are this process's to compute; those of all processes together are all rows."""
        return rows[self.rank :: self.count]

    def take_over(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give all processes the first one's parameters."""
        if self.count > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.data, src=0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put in the place of each gradient the sum of all processes'; one that a process lacks is zero."""
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)

    def sum(self, value: float, device: torch.device) -> float:
        """Return the sum of all processes' values, the same to the last bit in each. device: that they compute on."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total)
