"""Make up for what compression took, where the inputs see it: a low-rank change in their eigenspace (EoRA).

Liu et al. 2024, "EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation"
(arXiv:2410.21271): with X X^T = Q Lambda Q^T, what compression took is projected to (W - W_c) Q Lambda^(1/2); its
best approximation of rank r, U_r Sigma_r V_r^T, is projected back: B A = U_r Sigma_r V_r^T Lambda^(-1/2) Q^T. No other
change of that rank leaves less of ||(W - W_c - B A) X||^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.low_rank.residual import correct


@dataclass(frozen=True)
class EoRA:
    """Keep a change of rank ``rank`` beside each layer that an earlier step has compressed; nothing is trained.

    rank: r, 1 at the least. sequential: whether the inputs X have come through compressed and corrected predecessors,
    or come from the uncompressed model. Put it last: steps that would pack its layers anew are refused.
    """

    rank: int
    sequential: bool

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the corrected subject. Raises Unsupported as ``residual.correct`` does; SqueezeError without text."""

        def root(inputs: InputStatistics) -> torch.Tensor:
            return eigenspace(inputs.hessian)

        return correct(subject, calibration, technique="eora", rank=self.rank, root=root, sequential=self.sequential)


def eigenspace(hessian: torch.Tensor) -> torch.Tensor:
    """Return Q Lambda^(1/2) of H = Q Lambda Q^T; H: (in_features, in_features) float32, X X^T up to a factor."""
    values, vectors = torch.linalg.eigh(hessian)
    scaled: torch.Tensor = vectors * values.clamp_min(0).sqrt()
    return scaled
