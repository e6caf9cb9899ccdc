"""Quantize in mixed precision: more bits for the layers of the largest errors, within a budget of stored bits.

Dong et al. 2019, "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks" (arXiv:1911.03852), ranks
layers by a Hessian times the squared change of their weights (section 3). Here the Hessian is that of a layer's own
output, H = mean x x^T, so that the product is the squared error of that output; and a greedy choice replaces their
Pareto search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.affine import BITS
from squeeze.layers.contract import float_linears
from squeeze.layers.quantized import put
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.quantization import vocabulary


@dataclass(frozen=True)
class MixedRoundToNearest:
    """Round all linear layers of the blocks to nearest, each to ``bits`` or ``high_bits``.

    bits, high_bits: two of 8, 4, 3, 2, rising. budget: most bits a weight on average, scales and zeros not counted.
    ends: how many of the first, and of the last, blocks have ``high_bits`` whatever they gain; they come out of the
    budget. group_size, symmetric: the grid, as for ``rtn``. embed_bits: of embedding and head, as for ``hqq``.

    What is left of the budget goes to the layers that win most by it: relative squared output error taken away, per
    weight. Claims: ``bits`` is the average over all weights of the blocks, ``low_bits`` and ``high_bits`` the fewest
    and the most bits of any layer, ``high_layers`` how many layers have the field's ``high_bits``.
    """

    bits: Literal[4, 3, 2]
    high_bits: Literal[8, 4, 3]
    budget: float
    ends: int
    group_size: int | None
    symmetric: bool
    embed_bits: Literal[8, 4] | None = None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for other bits, a group size that does not fit, a budget that the ends alone exceed.
        """
        if not (self.bits in BITS and self.high_bits in BITS and self.bits < self.high_bits):
            raise Unsupported(
                f"rtn_mixed has bits {self.bits} and {self.high_bits}; expected two of 2, 3, 4, 8, the fewer first"
            )
        model = subject.model
        sizes = {name: architecture.weight(model.get_submodule(name)).numel() for name in float_linears(model)}
        affine.check("rtn_mixed", self.bits, self.group_size, map(model.get_submodule, sizes))
        vocabulary.check(model, self.embed_bits, self.group_size)
        fixed = self._at_the_ends(model, sizes)
        high = fixed | self.chosen(sizes, fixed, self._gains(model, calibration))
        bits = {name: self.high_bits if name in high else self.bits for name in sizes}
        for name in sizes:
            weight = architecture.weight(model.get_submodule(name))
            grid = self._fit(weight, bits[name])
            put(model, name, grid.quantize(weight), grid)
        claims = vocabulary.quantize(model, self.embed_bits, self.group_size)
        return subject.claiming(
            bits=round(self._average(sizes, high), 3),
            low_bits=min(bits.values()),
            high_bits=max(bits.values()),
            high_layers=len(high),
            group_size=self.group_size,
            symmetric=self.symmetric,
            **claims,
        )

    def chosen(self, sizes: Mapping[str, int], fixed: set[str], gains: Mapping[str, float]) -> set[str]:
        """Choose the layers beside ``fixed`` that get ``high_bits``: by falling gain per weight, each that still fits.

        sizes: weights of each layer. gains: what ``high_bits`` take away from each layer's relative error.
        """
        found: set[str] = set()
        for name in sorted(sizes.keys() - fixed, key=lambda name: (-gains[name] / sizes[name], name)):
            if self._average(sizes, fixed | found | {name}) <= self.budget:
                found.add(name)
        return found

    def error(self, weight: torch.Tensor, hessian: torch.Tensor, bits: int) -> float:
        """Return ||D X||^2 / ||W X||^2 with D = Q(W) - W.

        weight: (out_features, in_features), hessian: mean x x^T.
        """
        grid = self._fit(weight, bits)
        exact = weight.float()
        difference = grid.dequantize(grid.quantize(weight), torch.float32) - exact
        energy = float(((exact @ hessian) * exact).sum())
        return float(((difference @ hessian) * difference).sum()) / energy if energy else 0.0

    def _gains(self, model: nn.Module, calibration: Calibration) -> dict[str, float]:
        gains = {}
        for block_name, block, inputs in calibration.input_statistics(model):
            for name, statistics in inputs.items():
                weight = architecture.weight(block.get_submodule(name))
                few, many = (self.error(weight, statistics.hessian, bits) for bits in (self.bits, self.high_bits))
                gains[f"{block_name}.{name}"] = few - many
        return gains

    def _at_the_ends(self, model: nn.Module, sizes: Mapping[str, int]) -> set[str]:
        """Return the layers of the first and last ``ends`` blocks. Raises Unsupported if these alone exceed budget."""
        names = [name for name, _ in architecture.named_blocks(model)]
        ends = tuple(f"{name}." for name in {*names[: self.ends], *names[len(names) - self.ends :]})
        fixed = {name for name in sizes if name.startswith(ends)}
        if (average := self._average(sizes, fixed)) > self.budget:
            raise Unsupported(
                f"budget {self.budget} bits a weight; {self.ends} block(s) at each end at {self.high_bits} bits take "
                f"{average:.3f} already: raise budget or lower ends"
            )
        return fixed

    def _average(self, sizes: Mapping[str, int], high: set[str]) -> float:
        """Return the average bits a weight with ``high_bits`` for these layers."""
        share = sum(sizes[name] for name in high) / sum(sizes.values())
        return self.bits + (self.high_bits - self.bits) * share

    def _fit(self, weight: torch.Tensor, bits: int) -> affine.AffineGrid:
        return affine.fit(weight, bits, self.group_size or weight.shape[1], self.symmetric)
