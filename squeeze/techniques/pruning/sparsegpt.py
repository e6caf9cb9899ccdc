"""Prune column by column, and update the columns still to come so that they make up for each error (SparseGPT).

Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (arXiv:2301.00774).
The sibling of GPTQ, with zero in the place of the nearest code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from squeeze.models.settings import one_thread
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.hessian import check_damping_of, inverse_cholesky
from squeeze.techniques.pruning.owl import block_shares
from squeeze.techniques.pruning.selection import lowest, prune_blocks

BLOCK = 128  # columns whose zeros are chosen together, and that are finished before the others are updated (B = Bs)


@dataclass(frozen=True)
class SparseGPT:
    """Prune all linear layers of the blocks, and update the weights that stay.

    sparsity: share of the weights that become zero, in [0, 1).
    run: neighbours in a row of which this share becomes zero: 4 with sparsity 0.5 is the 2:4 pattern; None: wherever it
        costs least in a block of columns.
    damping, damping_of: by which share, and of what, each element of the Hessian's diagonal grows; see ``gptq``.
    sequential: whether the inputs have gone through pruned predecessors, as in the paper, or come from the float model.
    allocation, outlier, spread: which share of each block; see ``owl.Pruning``.
    """

    sparsity: float
    run: int | None
    damping: float
    sequential: bool
    damping_of: Literal["own", "mean"] = "own"
    allocation: Literal["uniform", "owl"] = "uniform"
    outlier: float = 5.0
    spread: float = 0.08

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject. Raises Unsupported as ``owl.block_shares`` does, and for another damping."""
        check_damping_of("sparsegpt", self.damping_of)
        shares = block_shares(self, subject.model, calibration)

        def prune(weight: torch.Tensor, inputs: InputStatistics, share: float) -> torch.Tensor:
            return replace(self, sparsity=share).prune(weight, inputs.hessian)

        prune_blocks(subject, calibration, prune, shares, sequential=self.sequential)
        return subject.without(*OF_CODES).claiming(
            sparsity=self.sparsity, hessian="sequential" if self.sequential else "shared"
        )

    def prune(self, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        """Return the pruned and updated weight (Algorithm 1), (out_features, in_features) as the one given.

        hessian: (in_features, in_features) float32, X X^T up to a factor.
        """
        columns, run = weight.shape[1], self.run or BLOCK
        block = max(BLOCK // run, 1) * run
        upper = inverse_cholesky(hessian, self.damping, self.damping_of)
        w = weight.T.float().contiguous()  # transposed: what the paper calls a column lies contiguous
        with one_thread():
            for start in range(0, columns, block):
                stop = min(start + block, columns)
                errors = torch.empty_like(w[start:stop])
                for i in range(start, stop):
                    if i % run == 0:
                        ahead = slice(i, min(i + run, stop))
                        pruned = self._chosen(w[ahead] / upper.diagonal()[ahead, None])
                    kept = w[i].masked_fill(pruned[i % run], 0)
                    errors[i - start] = (w[i] - kept) / upper[i, i]
                    w[i:stop].addr_(upper[i, i:stop], errors[i - start], alpha=-1)
                    w[i] = kept
                w[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
        return w.T.to(weight.dtype).contiguous()

    def _chosen(self, scores: torch.Tensor) -> torch.Tensor:
        """Return which weights of some columns become zero: those of least w^2 / U_ii^2.

        scores: (columns, out), w / U_ii.
        """
        scores = scores.abs()
        if self.run:
            return lowest(scores.T, self.sparsity).T
        return lowest(scores.flatten(), self.sparsity).view_as(scores)
