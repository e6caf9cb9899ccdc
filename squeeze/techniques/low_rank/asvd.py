"""Truncate the singular values of each matrix whose columns were scaled by the size of their inputs (ASVD).

Yuan, Shang, Song, Wu, Yan, Sun 2023, "ASVD: Activation-aware Singular Value Decomposition for Compressing Large
Language Models" (arXiv:2312.05821): with S = diag(s), s_j = (mean |x_j|)^alpha, and W S = U Sigma V^T,

    W ~ U_r Sigma_r V_r^T S^-1.

The authors choose each layer's rank by the perplexity that it costs; here each matrix keeps one share of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.low_rank.factorisation import factorise


@dataclass(frozen=True)
class ASVD:
    """Replace each linear layer of the blocks with two thin ones, columns of large inputs kept most faithfully.

    weights_kept: the most of a matrix's weights that its two factors may have, as a share above 0, at most 1.
    alpha: how much the size of inputs counts, from 0 (not at all: plain truncation) on; the paper's best is 0.5.
    sequential: whether the inputs have gone through factorised predecessors, or come from the float model.
    """

    weights_kept: float
    alpha: float
    sequential: bool

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for a share outside (0, 1] and an alpha below 0; SqueezeError without text.
        """
        if not self.alpha >= 0:
            raise Unsupported(f"asvd cannot scale by inputs to the power of {self.alpha}; expected alpha from 0 on")

        def root(inputs: InputStatistics) -> torch.Tensor:
            return torch.diag(scales(inputs.mean_abs, self.alpha))

        return factorise(
            subject,
            calibration,
            technique="asvd",
            weights_kept=self.weights_kept,
            root=root,
            sequential=self.sequential,
        )


def scales(mean_abs: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s_j = (mean |x_j|)^alpha, (in_features,), of the means.

    Inputs that were always zero are given 1: whatever they are multiplied with, they change nothing.
    """
    return torch.where(mean_abs > 0, mean_abs, 1).pow(alpha)
