"""Tell which weights a pruned model has set to zero, and how far two such masks agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from squeeze.layers.contract import is_compressed, matrices
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture

STRIDE = 127  # of each matrix every so many weights are looked at: a prime, so that no pattern hides between them
PRUNED = 0.1  # share of zeros from which a model counts as pruned

Mask = npt.NDArray[np.bool_]


def zeros(model: nn.Module) -> Mask | None:
    """Return which weights within the blocks are zero, of every STRIDE-th: (weights,); None where hardly any is.

    None, too, where weights are kept in another way than as plain floats or without their zeros: many are rounded to
    zero where codes are few, and none of these was pruned.
    """
    found = []
    for _, layer in matrices(model):
        if is_compressed(layer) and not isinstance(layer, SparseLinear):
            return None
        weight = layer.dequantize() if is_compressed(layer) else architecture.weight(layer)
        if type(weight.data) is not torch.Tensor or not weight.is_floating_point():
            return None
        found.append((weight.flatten()[::STRIDE] == 0).cpu())
    if not found:
        return None
    mask: Mask = torch.cat(found).numpy()
    return mask if mask.mean() > PRUNED else None


def agreement(ours: Mask | None, theirs: Mask | None) -> float | None:
    """Return the share of weights that both have set to zero, or neither; None where one is no mask of the same model.

    Of masks that have nothing to do with each other, half of the weights zero in both, it is 0.5.
    """
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return None
    return float((ours == theirs).mean())
