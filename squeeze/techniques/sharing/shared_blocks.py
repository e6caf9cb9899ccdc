"""Let neighbouring blocks use one set of matrices, so that they are stored once; nothing is trained.

Lan, Chen, Goodman, Gimpel, Sharma, Soricut 2019, "ALBERT: A Lite BERT for Self-supervised Learning of Language
Representations" (arXiv:1909.11942), section 3.1: cross-layer parameter sharing. Which blocks: Liu, Zhao, Iandola, Lai,
Tian, Fedorov, Xiong, Chang, Shi, Krishnamoorthi, Lai, Chandra 2024, "MobileLLM: Optimizing Sub-billion Parameter
Language Models for On-Device Use Cases" (arXiv:2402.14905), section 2.3: immediate block-wise sharing, of neighbours,
whose weights are still in a cache when the next block reads them.

Both papers train models that share from the beginning; here blocks that were trained apart are joined, which takes
training afterwards (shared_blocks_recover). Norms stay each block's own, where the papers share them, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, distinct_share, float_linears, is_described
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration

WEIGHTS = ("mean", "first")


@dataclass(frozen=True)
class SharedBlocks:
    """Share the linear layers of the blocks, weights and biases, within groups of neighbours.

    It saves bytes, on disk and in memory; as much is multiplied as before. Steps that follow compress, or train, what
    is shared as one.

    blocks_each: how many neighbours share, 2 or more; the last group may have fewer.
    weights: which ones they share: the "mean" of the group's, or those of its "first" block.
    """

    blocks_each: int = 2
    weights: Literal["mean", "first"] = "mean"

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject with fewer matrices.

        Raises Unsupported for groups of less than two, for other weights, where a group's blocks differ in their
        layers, for matrices that were factorised, and for sliced hidden states.
        """
        model = subject.model
        if self.blocks_each < 2:
            raise Unsupported(f"blocks_each is {self.blocks_each}, expected at least 2 blocks that share")
        if self.weights not in WEIGHTS:
            raise Unsupported(f"shared_blocks has no weights {self.weights!r}; expected {' or '.join(WEIGHTS)}")
        if (form := architecture.form(model)) is not None:
            raise Unsupported(
                f"blocks of the form {form} have their places; share blocks, then slice or prune pictures"
            )
        parameters = subject.claims.get("parameters", count_parameters(model))
        float_linears(model)
        blocks = architecture.named_blocks(model)
        groups = [blocks[first : first + self.blocks_each] for first in range(0, len(blocks), self.blocks_each)]
        for group in groups:
            check_alike(group)
        for group in groups:
            for name in architecture.linears(group[0][1]):
                layers = [block.get_submodule(name) for _, block in group]
                if self.weights == "mean":
                    average(layers)
                for block_name, _ in group[1:]:
                    architecture.replace(model, f"{block_name}.{name}", layers[0])
        return subject.without(*OF_CODES, "sparsity").claiming(
            parameters=parameters, weights_kept=distinct_share(model), loads_with="squeeze"
        )


def check_alike(blocks: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise Unsupported unless these blocks, given with their names, have the same plain linear layers."""
    (first, block), *others = blocks
    for name, module in block.named_modules():
        if is_described(module):
            kind = type(module).__name__
            raise Unsupported(f"{first}.{name} is a {kind}, expected one matrix; share blocks, then factorise")
    expected = _shapes(block)
    for other, each in others:
        found = _shapes(each)
        for name in sorted(expected | found):
            here, there = found.get(name, "missing"), expected.get(name, "missing")
            if here != there:
                raise Unsupported(f"{other}.{name} is {here}, in {first} it is {there}; expected blocks of one form")


@torch.no_grad()
def average(layers: Sequence[nn.Module]) -> None:
    """Give the first of some linear layers of one shape the mean of all weights, and that of all biases, in place.

    It is taken in float32, and of all matrices the one that is nearest to these, in the sum of squares.
    """
    for own in (architecture.weight, architecture.bias):
        tensors = [own(layer) for layer in layers]
        if tensors[0] is not None:
            tensors[0].copy_(torch.stack([tensor.float() for tensor in tensors if tensor is not None]).mean(dim=0))


def _shapes(block: nn.Module) -> dict[str, str]:
    """Return what each linear layer of a block is, in words, by its name below the block."""
    layers = architecture.linears(block)
    shapes = {name: "{} x {}".format(*architecture.shape(layer)) for name, layer in layers.items()}
    return {
        name: shape if architecture.bias(layers[name]) is None else f"{shape} with a bias"
        for name, shape in shapes.items()
    }
