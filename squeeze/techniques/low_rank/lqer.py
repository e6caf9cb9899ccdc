"""Make up for what rounding took by a low-rank change, columns scaled by the size of their inputs (LQER, L2QER).

Zhang, Cheng, Constantinides, Zhao 2024, "LQER: Low-Rank Quantization Error Reconstruction for LLMs" (arXiv:2402.02446):
B A is the best approximation of rank r of W - W_q (LQER) or, with S = diag(s), s_j the size of input j, that of
(W - W_q) S, times S^-1 (L2QER).

The size is the mean of |x_j| over all tokens; the paper takes the largest of its samples' means, over one number for
all inputs, which changes nothing. The paper rounds A and B to 8 bits; here they are in the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.low_rank.residual import correct


@dataclass(frozen=True)
class LQER:
    """Keep a change of rank ``rank`` beside each layer that an earlier step has compressed; nothing is trained.

    rank: r, 1 at the least. scaled: whether S is that of the inputs (L2QER); otherwise the identity, and no text is
    read. sequential: whether inputs have come through compressed and corrected predecessors, or come from the
    uncompressed model. Put it last: steps that would pack its layers anew are refused.
    """

    rank: int
    scaled: bool
    sequential: bool

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the corrected subject. Raises Unsupported as ``residual.correct`` does; SqueezeError without text."""

        def root(inputs: InputStatistics) -> torch.Tensor:
            return torch.diag(inputs.mean_abs)

        return correct(
            subject,
            calibration,
            technique="lqer",
            rank=self.rank,
            root=root if self.scaled else None,
            sequential=self.sequential,
        )
