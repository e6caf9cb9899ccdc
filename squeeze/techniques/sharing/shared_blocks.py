"""Let neighbouring blocks use one set of weights.

Lan, Chen, Goodman, Gimpel, Sharma, Soricut 2019, "ALBERT: A Lite BERT for Self-supervised Learning of Language
Representations" (arXiv:1909.11942), section 3.1, shares among all blocks; Liu et al. 2024, "MobileLLM: Optimizing
Sub-billion Parameter Language Models for On-Device Use Cases" (arXiv:2402.14905), among neighbours ("immediate
block-wise sharing"). Both train such models from the beginning; here a trained one is made so, and wants ``recover``.

What a block keeps of its own is fitted to its matrix W_i, with S the shared one, in closed form and without data:

    s_r = <w_r, S_r> / <S_r, S_r>     the scale of each output row r, of least squares,
    B A = the best matrix of rank k near W_i - diag(s) S     (Eckart and Young 1936).

Each block runs, as before: bytes are saved, no arithmetic. Norms, biases and the places in a key-value cache stay each
block's own. (Basis Sharing, arXiv:2410.03765, shares one factor instead of a matrix: ``basis_sharing``.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, float_linears, linear
from squeeze.layers.factors import Factors
from squeeze.layers.lora import features
from squeeze.layers.neighbours import Group, neighbours
from squeeze.layers.shared import SharedLinear
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class SharedBlocks:
    """Share the linear layers of each group of neighbouring blocks.

    blocks_each: blocks of a group, from 2; the last group has those that are left over. weights: which ones are shared,
    the "mean" of the group's, or the "first" block's. scales: whether each block scales the rows of what it shares, as
    fits it best. rank: of the change that each block keeps beside; None: it keeps none.
    """

    blocks_each: int
    weights: Literal["mean", "first"] = "mean"
    scales: bool = False
    rank: int | None = None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject whose blocks share.

        Raises Unsupported for other weights, for a rank that a layer cannot have, and as ``neighbours`` does.
        """
        if self.weights not in ("mean", "first"):
            raise Unsupported(f"shared_blocks has no weights {self.weights!r}; expected 'mean' or 'first'")
        model = subject.model
        groups = neighbours(model, self.blocks_each)
        self._check_rank(model, groups)
        parameters = subject.claims.get("parameters", count_parameters(model))
        float_linears(model)  # which makes dense what was compressed
        for group in groups:
            for names in group.values():
                if len(names) > 1:
                    self._share(model, names)
        return subject.without(*OF_CODES, "sparsity").claiming(parameters=parameters)

    def _check_rank(self, model: nn.Module, groups: Sequence[Group]) -> None:
        for name in groups[0]:
            layer = model.get_submodule(groups[0][name][0])
            most = min(features(layer))
            if self.rank is not None and not 1 <= self.rank <= most:
                raise Unsupported(f"rank is {self.rank}, but {name} has one of 1 to {most}; expected that, or null")

    def _share(self, model: nn.Module, names: Sequence[str]) -> None:
        """Let the layers of these full names share one weight."""
        layers = [model.get_submodule(name) for name in names]
        originals = [architecture.weight(layer) for layer in layers]
        whole = originals[0].float() if self.weights == "first" else mean(originals)
        common = linear(whole.to(originals[0].dtype).contiguous(), None)
        for name, layer, original in zip(names, layers, originals, strict=True):
            own = self._own(original, common.weight)
            architecture.replace(model, name, SharedLinear.of(common, architecture.bias(layer), *own))

    def _own(self, original: torch.Tensor, shared: torch.Tensor) -> tuple[torch.Tensor | None, Factors | None]:
        """Return the scales and the change of one block's matrix; neither, where it is the shared one."""
        if torch.equal(original, shared):
            return None, None
        exact, rest = original.float(), shared.float()
        scales = None
        if self.scales:
            scales = row_scales(exact, rest).to(shared.dtype)
            rest = scales[:, None].float() * rest
        if self.rank is None:
            return scales, None
        down, up = nearest(exact - rest, self.rank)
        return scales, Factors.of(down.to(shared.dtype), up.to(shared.dtype), None)


def mean(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of matrices of one shape, float32."""
    return torch.stack([weight.float() for weight in weights]).mean(dim=0)


def row_scales(original: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Return the s, (out_features,), of least ||W - diag(s) S||^2; 1 where a row of S is zero.

    original, shared: W and S, (out_features, in_features) float32.
    """
    energies = shared.square().sum(dim=1)
    return torch.where(energies > 0, (original * shared).sum(dim=1) / energies.clamp_min(TINY), 1)


def nearest(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, in_features) and B (out_features, rank), of one norm, of the B A nearest to a matrix.

    difference: (out_features, in_features) float32.
    """
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    halves = values[:rank].sqrt()
    return (halves[:, None] * right[:rank]).contiguous(), (left[:, :rank] * halves).contiguous()
