"""Let neighbouring blocks share one factor of their matrices, and keep the other.

Wang, Chen, Lin, Li, Zhang 2024, "Basis Sharing: Cross-Layer Parameter Sharing for Large Language Model Compression"
(arXiv:2410.03765), section 3: the matrices of n neighbours, of the same place in their blocks, become one, are whitened
by all their inputs together (S S^T = sum of X X^T) and truncated,

    S^T [W_1^T ... W_n^T] ~ U_r Sigma_r V_r^T,     W_i^T ~ (S^-T U_r Sigma_r) V_r,i^T,

the first factor a basis that all of them share, the second each one's coefficients. Queries, keys, values and what
makes the MLP's channels share one; what reads heads and channels (the paper's W_O and W_Down) loses more by it, and is
factorised for each block alone, as by ``svd``.

Here a share of the weights is kept of each group of matrices, so that sharing buys rank: n matrices have n more sets
of coefficients and one basis. The diagonal of X X^T grows as in ``svd``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, float_linears, linear
from squeeze.layers.factors import Factors
from squeeze.layers.neighbours import Group, neighbours
from squeeze.models import architecture
from squeeze.models.layout import layout
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.low_rank.svd import whitener


@dataclass(frozen=True)
class BasisSharing:
    """Replace the linear layers of each group of neighbouring blocks by a shared basis and coefficients of their own.

    weights_kept: the most of the weights that basis and coefficients may have, as a share above 0, at most 1.
    blocks_each: blocks of a group, from 2; the last group has those that are left over.
    whitened: whether S is that of the inputs; otherwise the identity, and no text is read.
    damping: share of itself by which each element of the diagonal of X X^T grows, so that it can be factored.
    """

    weights_kept: float
    blocks_each: int
    whitened: bool
    damping: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject whose blocks share.

        Raises Unsupported for a share outside (0, 1], as ``neighbours`` does, and for an architecture that is not
        known; SqueezeError without text, and for inputs that cannot be factored (``whitener``).
        """
        if not 0 < self.weights_kept <= 1:
            raise Unsupported(f"basis_sharing cannot keep a share of {self.weights_kept}; expected above 0, at most 1")
        model, where = subject.model, layout(subject.model)
        groups = neighbours(model, self.blocks_each)
        parameters = subject.claims.get("parameters", count_parameters(model))
        float_linears(model)  # which makes dense what was compressed
        stops = calibration.input_statistics(model) if self.whitened else iter(())
        for group in groups:
            blocks = len(group[where.down])
            hessians = {
                f"{block}.{name}": inputs.hessian
                for block, _, statistics in islice(stops, blocks)
                for name, inputs in statistics.items()
            }
            for names in _apart(group, (where.output, where.down)):
                self._factorise(model, names, hessians)
        return subject.without(*OF_CODES, "sparsity").claiming(parameters=parameters)

    def _factorise(self, model: nn.Module, names: Sequence[str], hessians: Mapping[str, torch.Tensor]) -> None:
        """Let the layers of these full names share one basis. hessians: by full name; none, where nothing whitens."""
        layers = [model.get_submodule(name) for name in names]
        weights = [architecture.weight(layer) for layer in layers]
        seen = [hessians[name] for name in names if name in hessians]
        root = whitener(torch.stack(seen).mean(dim=0), self.damping) if seen else None
        rows, columns = weights[0].shape
        rank = rank_of(len(names), rows, columns, self.weights_kept)
        basis, coefficients = jointly([weight.float() for weight in weights], rank, root)
        down = linear(basis.to(weights[0].dtype), None)
        for name, layer, up in zip(names, layers, coefficients, strict=True):
            made = Factors.of(down.weight.data, up.to(down.weight.dtype), architecture.bias(layer))
            made.down = down
            architecture.replace(model, name, made)


def rank_of(count: int, rows: int, columns: int, weights_kept: float) -> int:
    """Return the highest rank at which a basis and ``count`` matrices' coefficients have at most this share of weights.

    rows, columns: of each matrix. At least 1, at most what the matrices have together.
    """
    fitting = int(weights_kept * count * rows * columns / (columns + count * rows))
    return max(1, min(fitting, count * rows, columns))


def jointly(
    weights: Sequence[torch.Tensor], rank: int, root: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the shared A (rank, in_features) and each B_i (out_features, rank), float32, of the best W_i ~ B_i A.

    That is of the least sum of ||(W_i - B_i A) S||^2. weights: W_i, (out_features, in_features) float32. root: S, lower
    triangular, or None for the identity. A and all B_i together have one norm, so that none leaves the range of 16
    bits, and one learning rate suits all.
    """
    stacked = torch.cat(list(weights))  # (n * out_features, in_features): the paper's, transposed
    left, values, right = torch.linalg.svd(stacked if root is None else stacked @ root, full_matrices=False)
    basis, coefficients = values[:rank, None] * right[:rank], left[:, :rank]
    if root is not None:
        basis = torch.linalg.solve_triangular(root, basis, upper=False, left=False)
    share = (coefficients.norm() / basis.norm()).sqrt() if basis.any() else basis.new_ones(())
    parts = (coefficients / share).split([len(weight) for weight in weights])
    return (basis * share).contiguous(), [part.contiguous() for part in parts]


def _apart(group: Group, alone: Sequence[str]) -> list[list[str]]:
    """Return which full names share a basis: those of one place, but for places that share none."""
    shared = [names for place, names in group.items() if place not in alone]
    return shared + [[name] for place in alone for name in group[place]]
