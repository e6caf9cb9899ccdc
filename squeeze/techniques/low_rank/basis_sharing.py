"""Factorise the matrices of neighbouring blocks together: one basis for all of them, coefficients for each.

Wang, Chen, Lin, Li, Zhang 2024, "Basis Sharing: Cross-Layer Parameter Sharing for Large Language Model Compression"
(arXiv:2410.03765), section 3. The paper's matrices multiply from the right and stand side by side; here, those of a
group, (out_features, in_features) each, stand one above the other:

    [W_1; ...; W_n] S = U Sigma V^T,    W_i ~ B_i A,

with A = Sigma_r^(1/2) V_r^T S^-1 the basis, (rank, in_features), and B_i the rows of U_r Sigma_r^(1/2) that are W_i's.
S S^T is the mean of the inputs' x x^T over all blocks of the group, as if their inputs were one text; without
whitening, S is the identity. Matrices that write to the hidden states (o and down of Llama) share no basis: the paper
finds that they lose by it (section 3.3). Each is truncated alone, as by ``svd``, at the same share of weights.

A group of n keeps r (in_features + n out_features) weights instead of n r (in_features + out_features), so that the
same share leaves a higher rank.
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
from squeeze.models import architecture
from squeeze.models.layout import layout
from squeeze.models.subject import OF_CODES, Subject
from squeeze.models.surgery import check_alike
from squeeze.techniques.contract import Calibration, InputStatistics, Stop
from squeeze.techniques.low_rank.factorisation import factors, rank_of
from squeeze.techniques.low_rank.svd import whitener

NOTHING: Mapping[str, InputStatistics] = {}  # is looked at where nothing is whitened


@dataclass(frozen=True)
class BasisSharing:
    """Replace each linear layer of the blocks with two thin ones, of which neighbours share the first.

    weights_kept: the most of the weights that bases and coefficients may have, as a share above 0, at most 1.
    blocks_each: how many neighbours share, 2 or more; the last group may have fewer. The paper has 2 to 5.
    whitened: whether S is that of the inputs; otherwise the identity, and no text is read. They are the float model's.
    damping: share of itself by which each element of the diagonal of X X^T grows, so that it can be factored.
    """

    weights_kept: float
    blocks_each: int = 2
    whitened: bool = True
    damping: float = 0.01

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for a share outside (0, 1], for groups of less than two, for an architecture that is not
        known, where layers of blocks differ or are shared already; SqueezeError without text, where it is whitened.
        """
        if not 0 < self.weights_kept <= 1:
            raise Unsupported(
                f"basis_sharing cannot keep a share of {self.weights_kept}; expected more than 0, at most 1"
            )
        if self.blocks_each < 2:
            raise Unsupported(f"blocks_each is {self.blocks_each}, expected at least 2 blocks that share")
        model = subject.model
        where = layout(model)
        _check(model)
        parameters = subject.claims.get("parameters", count_parameters(model))
        blocks = architecture.named_blocks(model)
        stops = calibration.input_statistics(model) if self.whitened else ((*block, NOTHING) for block in blocks)
        while group := tuple(islice(stops, self.blocks_each)):
            for name in architecture.linears(group[0][1]):
                for sharing in [group] if name not in (where.output, where.down) else zip(group):
                    self._share(model, [f"{block}.{name}" for block, *_ in sharing], self._root(sharing, name))
        return subject.without(*OF_CODES, "sparsity").claiming(parameters=parameters)

    def _root(self, blocks: Sequence[Stop], name: str) -> torch.Tensor | None:
        """Return S of the inputs of the layers of this relative name; None where nothing is whitened."""
        if not self.whitened:
            return None
        hessians = [inputs[name].hessian for *_, inputs in blocks]
        return whitener(torch.stack(hessians).mean(dim=0), self.damping)

    def _share(self, model: nn.Module, names: Sequence[str], root: torch.Tensor | None) -> None:
        """Put factors with one basis in the places of these layers, which read inputs of one size."""
        layers = [model.get_submodule(name) for name in names]
        dtype = architecture.weight(layers[0]).dtype
        stacked = torch.cat([architecture.weight(layer).float() for layer in layers])
        rows, columns = stacked.shape
        basis, coefficients = factors(stacked, rank_of(rows, columns, self.weights_kept), root)
        shared = linear(basis.to(dtype), None)
        for name, layer, up in zip(names, layers, coefficients.to(dtype).chunk(len(layers)), strict=True):
            made = Factors.of(architecture.weight(shared), up.clone(), architecture.bias(layer))
            made.down = shared
            architecture.replace(model, name, made)


def _check(model: nn.Module) -> None:
    """Raise Unsupported for a model whose blocks differ in the sizes of their layers, or share some already."""
    check_alike(model)
    if len(float_linears(model)) < len(architecture.block_linears(model)):
        raise Unsupported("blocks share layers, which have no further basis to share; expected each block's own")
