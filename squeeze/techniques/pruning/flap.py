"""Remove neurons and heads whose outputs hardly change, and put the mean of what they gave into a bias (FLAP).

An, Zhao, Yu, Tang, Wang 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models"
(arXiv:2312.11983), section 3. With x the inputs, over the tokens of a text, of the layer W that reads the channels (the
last of the MLP, and the one behind attention):

    S_j = var(x_j) |W_:j|^2                                  the fluctuation of channel j ("WIFV")
    b  <- b + sum over removed j of W_:j mean(x_j)           exact for a channel that is constant

So that channels of all layers compare, each layer's scores are standardised, (S - mean S) / sd S; a group of heads has
the mean of its channels' scores. Inputs are those of the uncompressed model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture, own_sizes
from squeeze.models.layout import Coupled, group_size, layout, shares, sizes
from squeeze.models.subject import Subject
from squeeze.models.surgery import (
    check_alike,
    check_float,
    cut_channels,
    cut_heads,
    highest,
    keep_channels,
    keep_heads,
    set_weight,
    why_undescribed,
)
from squeeze.techniques.contract import Calibration
from squeeze.techniques.pruning.neurons import rounded

TOKENS = 2048  # that go through the model at once


@dataclass(frozen=True)
class FLAP:
    """Keep a share of the weights of the blocks' MLPs and attention, in whole neurons and groups of heads.

    weights_kept: share of these weights that stays, above 0, at most 1. structure: "uniform": that share of the neurons
    and of the heads of each block, rounded to whole ones; "adaptive": the best of all blocks and of both kinds, so that
    blocks have sizes of their own and at most this share stays, but something of each kind in each block. multiple:
    neurons stay in such numbers; kernels like it, and groups of weights that share a scale need it.
    """

    weights_kept: float
    structure: Literal["uniform", "adaptive"]
    multiple: int = 8

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with fewer neurons and heads; where no configuration describes it, squeeze alone loads it.

        Raises Unsupported for another share, structure or multiple, for an architecture that is not known, and for
        compressed layers; SqueezeError where there is no text.
        """
        model = subject.model
        self._check(model, calibration)
        before, parameters = sizes(model), subject.claims.get("parameters", count_parameters(model))
        parts = measured(model, calibration.token_ids, self.multiple)
        kept = [
            [highest(scores, count) for scores, count in zip(part.scores, counts, strict=True)]
            for part, counts in zip(parts, self._counts(model, parts), strict=True)
        ]
        for part, places in zip(parts, kept, strict=True):
            for block, stay, mean in zip(architecture.blocks(model), places, part.means, strict=True):
                compensate(block.get_submodule(part.coupled.reader), part.removed(stay, len(mean)), mean)
        self._cut(model, *kept)
        left = shares(before, sizes(model), subject.claims)
        return subject.claiming(parameters=parameters, **left, **own_sizes.claims(model))

    def _check(self, model: nn.Module, calibration: Calibration) -> None:
        if not 0 < self.weights_kept <= 1:
            raise Unsupported(f"flap cannot keep a share of {self.weights_kept}; expected more than 0, at most 1")
        if self.structure not in ("uniform", "adaptive"):
            raise Unsupported(f"flap has no structure {self.structure!r}; expected 'uniform' or 'adaptive'")
        where, channels = layout(model), int(sizes(model).channels)
        check_alike(model)
        check_float(model, (*where.up, where.down, *where.heads, where.output))
        if self.multiple < 1 or channels % self.multiple:
            raise Unsupported(f"flap: multiple {self.multiple} does not divide {channels} neurons; expected a divisor")
        if calibration.token_ids.numel() == 0:
            raise SqueezeError("flap needs text, found no tokens; name a calibration with a corpus")

    def _counts(self, model: nn.Module, parts: Sequence[Part]) -> list[list[int]]:
        """Return how many groups stay of each part in each block."""
        if self.structure == "uniform":
            return [
                [rounded(self.weights_kept * len(scores), part.together, len(scores)) for scores in part.scores]
                for part in parts
            ]
        blocks = architecture.blocks(model)
        bundles = [bundled(scores, part.together) for part in parts for scores in part.scores]
        weights = [part.weights(block) for part in parts for block in blocks]
        stay = allocated(bundles, weights, self.weights_kept)
        of_parts = stay[: len(blocks)], stay[len(blocks) :]
        return [[count * part.together for count in each] for part, each in zip(parts, of_parts, strict=True)]

    def _cut(self, model: Any, neurons: list[list[int]], heads: list[list[int]]) -> None:
        if self.structure == "adaptive":
            cut_channels(model, neurons)
            cut_heads(model, heads)
            return
        keep_channels(model, neurons)
        cut = cut_heads if why_undescribed(model, len(heads[0]), model.config.hidden_size) else keep_heads
        cut(model, heads)


@dataclass(frozen=True)
class Part:
    """Hold what was measured of neurons, or of groups of heads, in each block.

    width: channels of a group. together: how many groups stay or go at a time. scores: of each block, (groups,)
    float64. means: of each block, what the reader's inputs are on average, (channels,) float64.
    """

    coupled: Coupled
    width: int
    together: int
    scores: list[Tensor]
    means: list[Tensor]

    def removed(self, stay: Sequence[int], channels: int) -> Tensor:
        """Return which of so many channels go where these groups stay: (channels,) bool."""
        gone = torch.ones(channels // self.width, dtype=torch.bool)
        gone[list(stay)] = False
        return gone.repeat_interleave(self.width)

    def weights(self, block: nn.Module) -> int:
        """Count the weights of all groups of a block."""
        names = (*self.coupled.makers, self.coupled.reader)
        rows_and_columns = (architecture.shape(block.get_submodule(name)) for name in names)
        return sum(rows * columns for rows, columns in rows_and_columns)


def measured(model: nn.Module, token_ids: Tensor, multiple: int) -> tuple[Part, Part]:
    """Return what the neurons and the groups of heads of a model are worth over these windows, (samples, window)."""
    where = layout(model)
    seen = moments(model, (where.down, where.output), token_ids)

    def part(coupled: Coupled, width: int, together: int) -> Part:
        found = [each[coupled.reader] for each in seen]
        scores = [
            standardised(fluctuation(architecture.weight(block.get_submodule(coupled.reader)), variance))
            .view(-1, width)
            .mean(dim=1)
            for block, (_, variance) in zip(architecture.blocks(model), found, strict=True)
        ]
        return Part(coupled, width, together, scores, [mean for mean, _ in found])

    return part(where.mlp, 1, multiple), part(where.attention, group_size(model), 1)


def fluctuation(weight: Tensor, variance: Tensor) -> Tensor:
    """Return S_j = var(x_j) |W_:j|^2. weight: (out_features, in_features); variance, S: (in_features,) float64."""
    return variance * weight.double().square().sum(dim=0)


def standardised(scores: Tensor) -> Tensor:
    """Return scores with mean 0 and standard deviation 1; zeros where all are equal."""
    return (scores - scores.mean()) / scores.std(correction=0).clamp_min(torch.finfo(scores.dtype).tiny)


def bundled(scores: Tensor, together: int) -> Tensor:
    """Return the mean scores of bundles: the best ``together`` of (n,), those behind them, and so on, descending."""
    return scores.sort(descending=True).values.view(-1, together).mean(dim=1)


def allocated(scores: Sequence[Tensor], weights: Sequence[int], share: float) -> list[int]:
    """Return how many entries of each place stay: the best of all places, up to a share of all weights.

    scores: of each place, (n,), descending. weights: of each place, all its entries together. The first of each place
    stays whatever it costs; the others in the order of their scores, until the next one does not fit.
    """
    costs = [total / len(each) for each, total in zip(scores, weights, strict=True)]
    entries = sorted((-float(score), place) for place, each in enumerate(scores) for score in each[1:])
    counts, spent = [1] * len(scores), sum(costs)
    for _, place in entries:
        if spent + costs[place] > share * sum(weights):
            break
        counts[place] += 1
        spent += costs[place]
    return counts


def compensate(reader: nn.Module, removed: Tensor, mean: Tensor) -> None:
    """Add to a layer's bias what it makes of the mean of inputs that are to be removed; make one where there is none.

    removed: (in_features,) bool. mean: (in_features,) float64.
    """
    if not removed.any():
        return
    weight, bias = architecture.weight(reader), architecture.bias(reader)
    given = weight.double() @ mean.masked_fill(~removed.to(mean.device), 0)
    set_weight(reader, weight, (given if bias is None else bias.double() + given).to(weight.dtype))


@torch.no_grad()
def moments(model: nn.Module, names: Sequence[str], token_ids: Tensor) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Return the mean and the variance over all tokens of what these layers read, of each block by name.

    names: of linear layers, below a block. token_ids: (samples, window) int64. Both are (in_features,) float64; the
    variance is the unbiased one, sum (x - mean x)^2 / (tokens - 1).
    """
    blocks = architecture.blocks(model)
    sums: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in blocks]

    def note(into: dict[str, tuple[Tensor, Tensor]], name: str, _: nn.Module, inputs: Sequence[Tensor]) -> None:
        rows = inputs[0].flatten(0, -2).double()
        found = rows.sum(dim=0), rows.square().sum(dim=0)
        into[name] = (into[name][0] + found[0], into[name][1] + found[1]) if name in into else found

    handles = [
        block.get_submodule(name).register_forward_pre_hook(partial(note, into, name))
        for block, into in zip(blocks, sums, strict=True)
        for name in names
    ]
    try:
        for windows in torch.split(token_ids, max(TOKENS // token_ids.shape[1], 1)):
            architecture.base_model(model)(input_ids=windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    count = token_ids.numel()

    def of(total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        mean = total / count
        return mean, ((squares - total * mean) / max(count - 1, 1)).clamp_min(0)

    return [{name: of(*each) for name, each in into.items()} for into in sums]
