"""Round weights column by column, and update the columns still to come so that they make up for each error (GPTQ).

Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv:2210.17323). For every linear layer it looks for the grid points Q nearest to the weights W in the
layer's output on calibration inputs X: min ||W X - Q X||^2 (eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid
from squeeze.layers.contract import float_linears
from squeeze.layers.quantized import put
from squeeze.models import architecture
from squeeze.models.settings import one_thread
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, same_inputs
from squeeze.techniques.hessian import check_damping_of, inverse_cholesky
from squeeze.techniques.quantization import vocabulary

BLOCK = 64  # columns that are finished before all that follow are updated (the paper's B, there 128)


@dataclass(frozen=True)
class GPTQ:
    """Quantize all linear layers of the blocks; norms stay as they are.

    bits: 8, 4, 3 or 2. group_size, symmetric: the grid, as for ``rtn``. grid: where it is symmetric, "signed", or
        "absmax", as in the libraries (see ``squeeze.layers.affine``).
    act_order: whether to take the columns in falling order of their inputs' energy H_jj, so that those that matter most
        are rounded while all others can still make up for it; otherwise from first to last.
    static_groups: whether all grids are fitted before any update. Groups then stay neighbours in any order, and none is
        stored: act_order needs it. Otherwise a group's grid is fitted to its updated weights when its first column is
        reached, as in the paper.
    damping: by which share each element of the Hessian's diagonal grows, as if every input carried independent noise
        of that variance.
    damping_of: of what it is a share: "own", of the element itself, or "mean", of the diagonal's mean. The paper and
        the libraries add 1 % of the mean to all; a few inputs of the first token make that mean, and other channels are
        swamped. 0.3 of its own was chosen on held-out text of the calibration's kind: at 4 bits no worse than 0.1 or 1,
        at 3 bits better than 0.1.
    sequential: whether a block's Hessians come from inputs that have gone through quantized predecessors, as in the
        paper; otherwise from those of the float model, of which one shared pass serves all bit-widths.
    embed_bits: of embedding and head, as for ``hqq``; rounded when the blocks are done.
    """

    bits: Literal[8, 4, 3, 2]
    group_size: int | None
    symmetric: bool
    act_order: bool
    static_groups: bool
    damping: float
    sequential: bool
    damping_of: Literal["own", "mean"] = "own"
    grid: Literal["signed", "absmax"] = "signed"
    embed_bits: Literal[8, 4] | None = None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for other bits, act_order without static_groups, and a group size that does not fit.
        """
        check_damping_of("gptq", self.damping_of)
        if self.act_order and not self.static_groups:
            raise Unsupported("gptq cannot order columns across groups whose grids follow; set static_groups: true")
        model = subject.model
        affine.check("gptq", self.bits, self.group_size, map(model.get_submodule, float_linears(model)), self.grid)
        vocabulary.check(model, self.embed_bits, self.group_size)
        for block, _, inputs in calibration.input_statistics(model, sequential=self.sequential):
            for names, statistics in same_inputs(inputs):
                self._quantize_layers(model, [f"{block}.{name}" for name in names], statistics.hessian)
        claims = vocabulary.quantize(model, self.embed_bits, self.group_size)
        return subject.without("sparsity").claiming(  # zeros made up for errors, as all weights did
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            hessian="sequential" if self.sequential else "shared",
            **claims,
        )

    def _quantize_layers(self, model: nn.Module, names: Sequence[str], hessian: torch.Tensor) -> None:
        """Quantize layers that read the same inputs as one: the rows of a weight do not touch each other."""
        weights = [architecture.weight(model.get_submodule(name)) for name in names]
        codes, grid = self.quantize(torch.cat(weights), hessian)
        start = 0
        for name, weight in zip(names, weights, strict=True):
            rows = slice(start, start := start + len(weight))
            put(model, name, codes[rows], _rows(grid, rows))

    def quantize(self, weight: torch.Tensor, hessian: torch.Tensor) -> tuple[torch.Tensor, AffineGrid]:
        """Return codes (out_features, in_features) uint8 and their grid, for a float weight of that shape: Algorithm 1.

        hessian: (in_features, in_features) float32, X X^T up to a factor. Inputs that were always zero have no say,
        and their weights are rounded to nearest.
        """
        columns = weight.shape[1]
        group_size = self.group_size or columns
        order = hessian.diagonal().argsort(descending=True, stable=True) if self.act_order else torch.arange(columns)
        upper = inverse_cholesky(hessian[order][:, order], self.damping, self.damping_of)
        diagonal, groups = upper.diagonal().tolist(), (order // group_size).tolist()
        w = weight.T[order].float()  # transposed: what the paper calls a column lies contiguous
        grid = self._fit(weight, group_size)
        scales, zeros = _by_group(grid)
        with one_thread():
            for start, stop in _spans(columns, group_size):
                errors = torch.empty_like(w[start:stop])
                for i in range(start, stop):
                    if not self.static_groups and i % group_size == 0:
                        ahead = self._fit(w[i : i + group_size].T.to(weight.dtype), group_size)
                        scales[groups[i]], zeros[groups[i]] = (part[0] for part in _by_group(ahead))
                    scale, zero = scales[groups[i]], zeros[groups[i]]
                    code = (w[i] / scale).round_().add_(zero).clamp_(0, 2**self.bits - 1)
                    error = torch.div(w[i] - (code - zero).mul_(scale), diagonal[i], out=errors[i - start])
                    w[i + 1 : stop].addr_(upper[i, i + 1 : stop], error, alpha=-1)  # eq. 2, within the span
                    w[i] = code  # this column is done; its place keeps the result
                w[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)  # eq. 4: all that follow, at once
        codes = torch.empty_like(w, dtype=torch.uint8)
        codes[order] = w.to(torch.uint8)
        stored_zeros = None if grid.zeros is None else zeros.T.to(torch.uint8).contiguous()
        return codes.T.contiguous(), AffineGrid(self.bits, scales.T.to(grid.scales.dtype).contiguous(), stored_zeros)

    def _fit(self, weight: torch.Tensor, group_size: int) -> AffineGrid:
        return affine.fit(weight, self.bits, group_size, self.symmetric, self.grid)


def _spans(columns: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Yield spans of at most BLOCK columns. Each group starts where one does: its grid is fitted to updated weights."""
    for group in range(0, columns, group_size):
        for start in range(group, group + group_size, BLOCK):
            yield start, min(start + BLOCK, group + group_size)


def _rows(grid: AffineGrid, rows: slice) -> AffineGrid:
    return AffineGrid(grid.bits, grid.scales[rows], None if grid.zeros is None else grid.zeros[rows])


def _by_group(grid: AffineGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zero points in float32, (groups, out_features): those of one group lie contiguous."""
    zeros = torch.full_like(grid.scales, 2 ** (grid.bits - 1)) if grid.zeros is None else grid.zeros
    return grid.scales.T.float().contiguous(), zeros.T.float().contiguous()
