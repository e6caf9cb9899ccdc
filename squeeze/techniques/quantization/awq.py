"""Scale up the weights that meet large activations before rounding, and clip the range of each group (AWQ).

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han 2023, "AWQ: Activation-aware Weight Quantization for LLM
Compression and Acceleration" (arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid
from squeeze.layers.contract import float_linears
from squeeze.layers.quantized import put
from squeeze.models import architecture
from squeeze.models.folding import folds
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.quantization import vocabulary

EXPONENTS = tuple(i / 20 for i in range(20))  # the grid of alpha
SHARES = tuple(1 - i / 20 for i in range(10))  # the grid of clipping: how much of a group's range is kept
# Errors of queries and keys multiply; the authors' code does not clip them either.
UNCLIPPED = ("q_proj", "k_proj", "query", "key", "query_key_value", "c_attn")


@dataclass(frozen=True)
class AWQ:
    """Quantize all linear layers of the blocks.

    bits: 8, 4, 3 or 2. group_size, symmetric: the grid, as for ``rtn``. clip: whether to search each group's range too.
    embed_bits: of embedding and head, as for ``hqq``; rounded when the blocks are done.

    Scales go into the norm or layer before (see ``folding``): the model stays what it was, and nothing more is stored.
    Layers that no exact fold reaches keep their scale; ``claims["unscaled"]`` names them. What is minimised is the
    error of a layer's output on the float model's inputs, so that one shared pass serves all bit-widths.
    """

    bits: Literal[8, 4, 3, 2]
    group_size: int | None
    symmetric: bool
    clip: bool
    embed_bits: Literal[8, 4] | None = None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for other bits, a group size that does not fit, an architecture that cannot be folded.
        """
        model = subject.model
        names = float_linears(model)  # which makes dense what was pruned: folds look at the weights
        exact = folds(model)
        affine.check("awq", self.bits, self.group_size, map(model.get_submodule, names))
        vocabulary.check(model, self.embed_bits, self.group_size)
        unscaled: set[str] = set()
        for block_name, block, inputs in calibration.input_statistics(model):
            scales = {name: torch.ones_like(statistics.mean_abs) for name, statistics in inputs.items()}
            for fold in exact:
                weights = [architecture.weight(block.get_submodule(name)) for name in fold.consumers]
                found = self.scales(weights, inputs[fold.consumers[0]])
                fold.apply(block, found)
                scales |= dict.fromkeys(fold.consumers, found)
            unscaled |= set(inputs) - {name for fold in exact for name in fold.consumers}
            for name, statistics in inputs.items():
                weight = architecture.weight(block.get_submodule(name))
                if self.clip and not name.endswith(UNCLIPPED):
                    weight = self.clipped(weight, statistics.hessian / scales[name].outer(scales[name]))
                grid = self._fit(weight)
                put(model, f"{block_name}.{name}", grid.quantize(weight), grid)
        claims = vocabulary.quantize(model, self.embed_bits, self.group_size)
        return subject.claiming(
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            hessian="shared",
            unscaled=sorted(unscaled),
            **claims,
        )

    def scales(self, weights: Sequence[torch.Tensor], inputs: InputStatistics) -> torch.Tensor:
        """Return (in_features,): s = mean|x|^alpha, alpha of least loss (eq. 4 and 5), extremes balanced about 1.

        weights: (out_features, in_features) of all layers that read these inputs.
        """
        powers = [inputs.mean_abs.clamp(min=1e-4).pow(alpha) for alpha in EXPONENTS]
        candidates = [power / (power.amax() * power.amin()).sqrt() for power in powers]
        losses = [sum(self._loss(weight.float(), s, inputs.hessian) for weight in weights) for s in candidates]
        return candidates[losses.index(min(losses))]

    def _loss(self, weight: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor) -> float:
        """Return the loss of eq. 4: ||Q(W diag(s)) diag(s)^-1 X - W X||^2 = tr(D H D^T)."""
        difference = self._rounded(weight * scales) / scales - weight
        return float(((difference @ hessian) * difference).sum())

    def clipped(self, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        """Return the weight with each group's range clipped, group by group, to the share of ``SHARES`` of least loss.

        weight: (out_features, in_features). hessian: (in_features, in_features); of it, the groups' own blocks count.
        """
        size = self.group_size or weight.shape[1]
        groups = weight.float().reshape(len(weight), -1, size)  # (out_features, groups, size)
        starts = range(0, weight.shape[1], size)
        own = torch.stack([hessian[start : start + size, start : start + size] for start in starts])
        best, least = groups, groups.new_full(groups.shape[:2], torch.inf)
        for share in SHARES:
            limit = share * groups.abs().amax(-1, keepdim=True)
            cut = groups.clamp(-limit, limit)
            difference = self._rounded(cut.flatten(1)).view_as(groups) - groups
            loss = (torch.einsum("ogi,gij->ogj", difference, own) * difference).sum(-1)
            best = torch.where((loss < least)[..., None], cut, best)
            least = torch.minimum(loss, least)
        return best.flatten(1).to(weight.dtype)

    def _fit(self, weight: torch.Tensor) -> AffineGrid:
        return affine.fit(weight, self.bits, self.group_size or weight.shape[1], self.symmetric)

    def _rounded(self, weight: torch.Tensor) -> torch.Tensor:
        grid = self._fit(weight)
        return grid.dequantize(grid.quantize(weight), torch.float32)
