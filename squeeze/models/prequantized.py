"""Find weights that were quantized before squeeze saw them, and the cells that they flatter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from squeeze.models import architecture

BLOCK = 32  # weights along the input dimension that the common formats give one scale (GGUF Q4_0, Q4_1, Q8_0, MX)
LEVELS = 16  # distinct values in a block at or below which it lies on a grid: what 4 bits can tell apart
ROWS = 8  # rows looked at in each matrix: over a hundred blocks of a small one
SHARE = 0.99  # of the blocks that must lie on a grid; a few may be odd ones (pruned, constant)


@dataclass(frozen=True)
class Grid:
    """Hold a grid: ``levels`` values at most in nearly every block of ``block`` weights of ``matrices`` matrices."""

    levels: int
    block: int
    matrices: int


def find_grid(model: nn.Module) -> Grid | None:
    """Return the grid on which the linear layers of the blocks lie, or None where most of them lie on none.

    A sample of rows is read, so that a large model takes milliseconds; the dtype in which the weights are held
    does not matter.
    """
    layers = architecture.block_linears(model).values()
    levels = [found for layer in layers if (found := grid_levels(architecture.weight(layer))) is not None]
    return Grid(max(levels), BLOCK, len(levels)) if 2 * len(levels) > len(layers) else None


def grid_levels(weight: torch.Tensor) -> int | None:
    """Count distinct values in nearly every block of 32 weights, (out_features, in_features); None above 16."""
    rows = weight[torch.linspace(0, len(weight) - 1, min(ROWS, len(weight))).long()]
    blocks = rows[:, : rows.shape[1] // BLOCK * BLOCK].reshape(-1, BLOCK).float()
    if not len(blocks):
        return None
    ordered = blocks.sort(dim=1).values
    distinct = 1 + (ordered.diff(dim=1) != 0).sum(dim=1)
    levels = int(distinct.float().quantile(SHARE, interpolation="higher"))
    return levels if levels <= LEVELS else None


def flattered(grid: Grid | None, step: Mapping[str, Any]) -> bool:
    """Tell whether a step may lose less on this grid than it would on the weights before they were put on it.

    step: its ``bits``, ``group_size`` and ``symmetric`` (or a technique's claims, which name the same; where layers
    differ in bits, ``low_bits`` are the fewest, which count: some layers gain, and the average of all says nothing).
    Marked are asymmetric codes of 4 bits or fewer in groups that share their borders with the grid's blocks, or join
    two.

    On SmolLM2-135M-Instruct, whose weights are Q4_1 (blocks of 32), the error of 4-bit codes with a real-valued
    minimum is 0 in groups of 32, and in groups of 16 and 64 it is 17 and 13 % below that on the same weights moved off
    the grid at random by up to half a step; at 96 and 192 it is 6 and 1 %, and with 3 bits at most 6 %. A step does not
    say whether its offset is such a minimum or an integer zero point (which gains less than 1 %): both are marked.
    Symmetric codes gain nothing.
    """
    bits, group_size = step.get("low_bits", step.get("bits")), step.get("group_size")
    if grid is None or step.get("symmetric") is not False or bits is None or group_size is None:
        return False
    return bool(bits <= 4 and 2 * grid.block % group_size == 0)
