"""The walk that calibrated pruning methods share: block by block, each linear layer by what its inputs are like."""

from __future__ import annotations

from collections.abc import Callable

import torch

from squeeze.layers.dense import float_linears
from squeeze.layers.sparse import SparseLinear, check_sparsity
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.block_walk import InputStatistics
from squeeze.techniques.calibration import Calibration

Prune = Callable[[torch.Tensor, InputStatistics], torch.Tensor]  # weight (out_features, in_features) -> with its zeros


def prune_blocks(
    subject: Subject, calibration: Calibration, prune: Prune, *, sparsity: float, run: int | None, sequential: bool
) -> None:
    """Put what ``prune`` makes of each linear layer of the blocks in its place, stored sparsely.

    sequential: whether a block's inputs have gone through pruned predecessors, or come from the float model.
    Raises Unsupported for a sparsity outside [0, 1), and where runs do not fit; see ``check_sparsity``.
    """
    layers = float_linears(subject.model)
    check_sparsity(sparsity, run, [architecture.weight(layer).shape[1] for layer in layers.values()])
    for block, _, inputs in calibration.input_statistics(subject.model, sequential=sequential):
        for name, statistics in inputs.items():
            layer = layers.pop(f"{block}.{name}")
            sparse = SparseLinear.of(prune(architecture.weight(layer), statistics), architecture.bias(layer))
            architecture.replace(subject.model, f"{block}.{name}", sparse)
