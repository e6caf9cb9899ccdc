"""Choose the weights that become zeros, and prune a model block by block: what pruning methods share."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics

Prune = Callable[[torch.Tensor, InputStatistics], torch.Tensor]  # weight (out_features, in_features) -> with its zeros


def prune_blocks(
    subject: Subject, calibration: Calibration, prune: Prune, *, sparsity: float, run: int | None, sequential: bool
) -> None:
    """Replace each linear layer of the blocks with what ``prune`` makes of it, stored sparsely.

    sequential: whether a block's inputs have gone through pruned predecessors, or come from the float model.
    Raises Unsupported for a sparsity outside [0, 1), and where runs do not fit; see ``check_sparsity``.
    """
    model = subject.model
    check_sparsity(
        sparsity, run, [architecture.weight(model.get_submodule(name)).shape[1] for name in float_linears(model)]
    )
    for block_name, block, inputs in calibration.input_statistics(model, sequential=sequential):
        for name, statistics in inputs.items():
            layer = block.get_submodule(name)
            sparse = SparseLinear.of(prune(architecture.weight(layer), statistics), architecture.bias(layer))
            architecture.replace(model, f"{block_name}.{name}", sparse)


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
