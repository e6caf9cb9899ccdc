"""Truncate the singular values of each matrix, as it is or as its inputs see it (SVD-LLM).

Wang, Zheng, Wan, Zhang 2024, "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
Compression" (arXiv:2403.07378), section 3.1: with X X^T = S S^T and W S = U Sigma V^T,

    W ~ U_r Sigma_r V_r^T S^-1,

whose squared output error ||W X - W' X||^2 is the sum of the squares of the singular values that are left out (the
paper's second theorem). Without whitening S is the identity (Eckart and Young 1936): the error is that of the weights.

The authors read the inputs off the uncompressed model (``sequential: false``), and damp X X^T only where it cannot be
factored otherwise; here its diagonal always grows, by a share of each element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters, float_linears
from squeeze.layers.factors import Factors
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration


@dataclass(frozen=True)
class SVD:
    """Replace each linear layer of the blocks with two thin ones, of the rank at which they have fewer weights.

    weights_kept: the most of a matrix's weights that its two factors may have, as a share above 0, at most 1.
    whitened: whether S is that of the inputs; otherwise the identity, and no text is read.
    damping: share of itself by which each element of the diagonal of X X^T grows, so that it can be factored.
    sequential: whether the inputs have gone through factorised predecessors, or come from the float model.
    """

    weights_kept: float
    whitened: bool
    damping: float
    sequential: bool

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for a share outside (0, 1]; SqueezeError without text, and for inputs that cannot be factored
        (``whitener``).
        """
        if not 0 < self.weights_kept <= 1:
            raise Unsupported(f"svd cannot keep a share of {self.weights_kept}; expected more than 0, at most 1")
        model = subject.model
        parameters = subject.claims.get("parameters", count_parameters(model))
        names = float_linears(model)
        if not self.whitened:
            for name in names:
                self._replace(subject, name, None)
        else:
            for block, _, inputs in calibration.input_statistics(model, sequential=self.sequential):
                for name, statistics in inputs.items():
                    self._replace(subject, f"{block}.{name}", statistics.hessian)
        return subject.without(*OF_CODES, "sparsity").claiming(parameters=parameters)

    def _replace(self, subject: Subject, name: str, hessian: torch.Tensor | None) -> None:
        layer = subject.model.get_submodule(name)
        weight = architecture.weight(layer)
        root = None if hessian is None else whitener(hessian, self.damping)
        rows, columns = weight.shape
        down, up = factors(weight.float(), rank_of(rows, columns, self.weights_kept), root)
        made = Factors.of(down.to(weight.dtype), up.to(weight.dtype), architecture.bias(layer))
        architecture.replace(subject.model, name, made)


def rank_of(rows: int, columns: int, weights_kept: float) -> int:
    """Return the highest rank at which two factors have at most this share of a matrix's weights; at least 1."""
    return max(1, int(weights_kept * rows * columns / (rows + columns)))


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


def factors(weight: torch.Tensor, rank: int, root: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, in_features) and B (out_features, rank), float32, of the best B A in the norm that S sees.

    weight: (out_features, in_features) float32. root: S, lower triangular, or None for the identity. Both factors have
    one norm, so that neither leaves the range of 16 bits, and one learning rate suits both.
    """
    seen = weight if root is None else weight @ root
    left, values, right = torch.linalg.svd(seen, full_matrices=False)
    roots = values[:rank].sqrt()
    up, down = left[:, :rank] * roots, roots[:, None] * right[:rank]
    if root is not None:
        down = torch.linalg.solve_triangular(root, down, upper=False, left=False)
    share = (up.norm() / down.norm()).sqrt() if up.any() else up.new_ones(())
    return (down * share).contiguous(), (up / share).contiguous()
