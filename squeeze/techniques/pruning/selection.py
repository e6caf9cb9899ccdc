"""Choose the weights that become zeros, and prune a model block by block: what pruning methods share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics

# weight (out_features, in_features), its inputs, the share of it that becomes zero -> the weight with its zeros
Prune = Callable[[torch.Tensor, InputStatistics, float], torch.Tensor]


def prune_blocks(
    subject: Subject, calibration: Calibration, prune: Prune, shares: Mapping[str, float], *, sequential: bool
) -> None:
    """Replace each linear layer of the blocks with what ``prune`` makes of it, stored sparsely.

    shares: of each block's weights, by its full name, those that become zero; see ``owl.block_shares``.
    sequential: whether a block's inputs have gone through pruned predecessors, or come from the float model.
    """
    for block_name, block, inputs in calibration.input_statistics(subject.model, sequential=sequential):
        for name, statistics in inputs.items():
            layer = block.get_submodule(name)
            pruned = prune(architecture.weight(layer), statistics, shares[block_name])
            sparse = SparseLinear.of(pruned, architecture.bias(layer))
            architecture.replace(subject.model, f"{block_name}.{name}", sparse)


def prunable(model: nn.Module, sparsity: float, run: int | None = None) -> list[str]:
    """Return the full names of all linear layers within the blocks, dense ones, as ``float_linears`` does.

    Raises Unsupported as that does, and where such zeros do not fit; see ``check_sparsity``.
    """
    names = float_linears(model)
    check_sparsity(sparsity, run, [architecture.weight(model.get_submodule(name)).shape[1] for name in names])
    return names


def check_sparsity(sparsity: float, run: int | None = None, in_features: Collection[int] = ()) -> None:
    """Check that a share of each run of neighbours can become zero; a run of None stands for any weights.

    Raises Unsupported for a sparsity outside [0, 1), for a run that does not divide a row, and where the share of it is
    no whole number of weights.
    """
    if not 0 <= sparsity < 1:
        raise Unsupported(f"cannot prune a share of {sparsity}; expected 0 <= sparsity < 1")
    if run is None:
        return
    if misfits := [width for width in in_features if run < 1 or width % run]:
        raise Unsupported(f"run {run} does not divide in_features {misfits[0]}; expected a divisor, such as 4")
    if round(sparsity * run) != sparsity * run:
        raise Unsupported(f"sparsity {sparsity} of {run} weights is {sparsity * run:g}; expected a whole number")


def saliency(weight: torch.Tensor, inputs: InputStatistics) -> torch.Tensor:
    """Return |W_ij| * ||X_j||_2 (Wanda, arXiv:2306.11695, eq. 1), float32, of a weight (out_features, in_features)."""
    return weight.float().abs() * inputs.norms


def lowest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return a mask of the lowest scores along the last dimension, with exactly round(share * n) True of every n.

    Among equal scores the first ones are taken.
    """
    count = round(share * scores.shape[-1])
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = scores < threshold, scores == threshold
    places = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1) <= places))
