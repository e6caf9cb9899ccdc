"""Prune by weight and activation (Wanda): zero the weights that are small for the inputs that they multiply.

Sun, Liu, Bair, Kolter 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv:2306.11695).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.pruning.owl import block_shares
from squeeze.techniques.pruning.selection import lowest, prune_blocks, saliency


@dataclass(frozen=True)
class Wanda:
    """Zero the share of each output row's weights that is lowest in |W_ij| * ||X_j||_2 (eq. 1); no weight is updated.

    sparsity: share of the weights that become zero in the linear layers of the blocks, in [0, 1).
    run: weights of a row that are compared with each other: None, all of them; 4 with sparsity 0.5, the 2:4 pattern.
    sequential: whether the inputs have gone through pruned predecessors, as in the paper, or come from the float model.
    allocation, outlier, spread: which share of each block; see ``owl.Pruning``.
    """

    sparsity: float
    run: int | None
    sequential: bool
    allocation: Literal["uniform", "owl"] = "uniform"
    outlier: float = 5.0
    spread: float = 0.08

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject. Raises Unsupported as ``owl.block_shares`` does."""
        shares = block_shares(self, subject.model, calibration)
        prune_blocks(subject, calibration, self.prune, shares, sequential=self.sequential)
        return subject.without(*OF_CODES).claiming(
            sparsity=self.sparsity, inputs="sequential" if self.sequential else "shared"
        )

    def prune(self, weight: torch.Tensor, inputs: InputStatistics, share: float) -> torch.Tensor:
        """Return the weight, (out_features, in_features), with this share of zeros in each row."""
        score = saliency(weight, inputs)
        pruned = lowest(score.reshape(len(weight), -1, self.run or weight.shape[1]), share).flatten(1)
        return weight.masked_fill(pruned, 0)
