"""Prune by magnitude: set the weights nearest to zero to zero."""

from __future__ import annotations

from dataclasses import dataclass

from squeeze.layers.contract import float_linears
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.pruning.selection import check_sparsity, lowest


@dataclass(frozen=True)
class Magnitude:
    """Zero the share of each layer's weights that is lowest in |W_ij| (Han et al. 2015, arXiv:1506.02626, section 3.1).

    sparsity: share of the weights that become zero in every linear layer of the blocks, in [0, 1). No retraining.
    """

    sparsity: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject. Raises Unsupported for a sparsity outside [0, 1)."""
        check_sparsity(self.sparsity)
        for name in float_linears(subject.model):
            layer = subject.model.get_submodule(name)
            weight = architecture.weight(layer)
            pruned = lowest(weight.abs().flatten(), self.sparsity).view_as(weight)
            sparse = SparseLinear.of(weight.masked_fill(pruned, 0), architecture.bias(layer))
            architecture.replace(subject.model, name, sparse)
        return subject.without(*OF_CODES).claiming(sparsity=self.sparsity)
