"""Truncate the singular values of each matrix, as it is or as its inputs see it (SVD-LLM).

Wang, Zheng, Wan, Zhang 2024, "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
Compression" (arXiv:2403.07378), section 3.1: with X X^T = S S^T and W S = U Sigma V^T,

    W ~ U_r Sigma_r V_r^T S^-1,

whose squared output error ||W X - W' X||^2 is the sum of the squares of the singular values that are left out (the
paper's second theorem). Without whitening S is the identity (Eckart and Young 1936): the error is that of the weights.

The authors read the inputs off the uncompressed model (``sequential: false``), and damp X X^T only where it cannot be
factored otherwise; here its diagonal always grows, by a share of each element. They keep one share of every matrix
(``ranks: uniform``); sharing out one budget over all by what each singular value is worth is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from squeeze.core.errors import SqueezeError
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.low_rank.factorisation import factorise


@dataclass(frozen=True)
class SVD:
    """Replace each linear layer of the blocks with two thin ones, of the rank at which they have fewer weights.

    weights_kept: the most of the weights that factors may have, as a share above 0, at most 1.
    whitened: whether S is that of the inputs; otherwise the identity, and no text is read.
    damping: share of itself by which each element of the diagonal of X X^T grows, so that it can be factored.
    sequential: whether the inputs have gone through factorised predecessors, or come from the float model.
    ranks: "uniform", of each matrix that share; "spectrum", of all together, the ranks where they take away most of the
        relative output errors (of the weights', where nothing is whitened), and matrices may stay dense.
    """

    weights_kept: float
    whitened: bool
    damping: float
    sequential: bool
    ranks: Literal["uniform", "spectrum"] = "uniform"

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for a share outside (0, 1] and for other ranks; SqueezeError without text, and for inputs
        that cannot be factored (``whitener``).
        """

        def root(inputs: InputStatistics) -> torch.Tensor:
            return whitener(inputs.hessian, self.damping)

        return factorise(
            subject,
            calibration,
            technique="svd",
            weights_kept=self.weights_kept,
            root=root if self.whitened else None,
            sequential=self.sequential,
            ranks=self.ranks,
        )


def whitener(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the lower triangular S of S S^T = H + damping * diag H; H: (in_features, in_features) float32.

    Inputs that were always zero are given a size, any one: whatever they are multiplied with, they change nothing.
    Raises SqueezeError for a Hessian that is not positive definite even so.
    """
    energies = hessian.double().diagonal()
    damped = hessian.double() + torch.diag(torch.where(energies > 0, damping * energies, 1))
    root, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise SqueezeError(f"the Hessian is not positive definite with damping={damping}; expected more, such as 0.01")
    single: torch.Tensor = root.float()
    return single
