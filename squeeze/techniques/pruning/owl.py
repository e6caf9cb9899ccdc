"""Give each block a sparsity of its own within one total: fewer zeros where more outliers are (OWL).

Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity"
(arXiv:2310.05175). Its layers are whole blocks, whose weights are scored together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.techniques.contract import Calibration
from squeeze.techniques.pruning.selection import prunable, saliency


class Pruning(Protocol):
    """Define the fields by which a pruning step says how many zeros each block gets.

    sparsity: share of all the blocks' weights that become zero. run: neighbours of which that share does; None: any.
    allocation: "uniform", the same share in each block; "owl": by outliers. outlier: how many times the mean score of
    its block an outlier exceeds (the paper's M; 3 to 10 there). spread: how far the block that is farthest from
    ``sparsity`` lies from it (lambda; 0.08 there). Both are read with "owl" alone.
    """

    @property
    def sparsity(self) -> float: ...  # noqa: D102 - see above

    @property
    def run(self) -> int | None: ...  # noqa: D102

    @property
    def allocation(self) -> str: ...  # noqa: D102

    @property
    def outlier(self) -> float: ...  # noqa: D102

    @property
    def spread(self) -> float: ...  # noqa: D102


def block_shares(step: Pruning, model: nn.Module, calibration: Calibration) -> dict[str, float]:
    """Return the share of its weights that becomes zero in each block, by full name; nothing is pruned yet.

    Scores are those of the model as it is, with inputs that have gone through no pruned block.
    Raises Unsupported as ``check`` and ``selection.prunable`` do.
    """
    check(step)
    prunable(model, step.sparsity, step.run)
    if step.allocation == "uniform":
        return dict.fromkeys((name for name, _ in architecture.named_blocks(model)), step.sparsity)
    outliers, sizes = {}, {}
    for name, block, inputs in calibration.input_statistics(model):
        weights = [architecture.weight(block.get_submodule(layer)) for layer in inputs]
        scores = [saliency(weight, statistics) for weight, statistics in zip(weights, inputs.values(), strict=True)]
        outliers[name], sizes[name] = outlier_share(scores, step.outlier), sum(weight.numel() for weight in weights)
    found = allocated(list(outliers.values()), list(sizes.values()), step.sparsity, step.spread)
    return dict(zip(outliers, found, strict=True))


def check(step: Pruning) -> None:
    """Check that the sparsity can be allocated so.

    Raises Unsupported for another allocation and, with "owl", for runs, for a threshold that is not positive, and where
    a block's share could lie below 0 or above 1.
    """
    if step.allocation not in ("uniform", "owl"):
        raise Unsupported(f"pruning has no allocation {step.allocation!r}; expected 'uniform' or 'owl'")
    if step.allocation == "uniform":
        return
    if step.run is not None:
        raise Unsupported(f"owl's shares are no whole number of {step.run} weights; use run=null or allocation=uniform")
    if not step.outlier > 0:
        raise Unsupported(f"owl cannot tell outliers by {step.outlier} times the mean; expected more than 0, such as 5")
    if not 0 <= step.spread <= min(step.sparsity, 1 - step.sparsity):
        raise Unsupported(
            f"owl cannot spread a sparsity of {step.sparsity} by {step.spread} to either side;"
            f" expected 0 to {min(step.sparsity, 1 - step.sparsity):g}"
        )


def outlier_share(scores: Sequence[torch.Tensor], times: float) -> float:
    """Return the share of a block's scores that exceed ``times`` their mean: D of the paper's section 3.2."""
    total = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / total
    return sum(int((score > times * mean).sum()) for score in scores) / total


def allocated(outliers: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float) -> list[float]:
    """Return a share for each block that falls with its outliers, so that the mean of all weights is ``sparsity``.

    outliers: D of each block; sizes: its weights. S_b = S + lambda (D_mean - D_b) / max_i |D_mean - D_i|, the mean
    weighted by sizes: no block lies farther from S than lambda, the paper's bound. (The paper's own code lays the range
    of the shares over 2 lambda and centres it then, so that one end lies beyond.)
    """
    mean = sum(share * size for share, size in zip(outliers, sizes, strict=True)) / sum(sizes)
    deviations = [mean - share for share in outliers]
    if len({*outliers}) == 1:  # what differs is rounding
        return [sparsity] * len(outliers)
    most = max(map(abs, deviations))
    return [sparsity + spread * deviation / most for deviation in deviations]
