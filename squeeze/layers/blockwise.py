"""Products with a weight that is never there as a whole: some of its rows are laid out in floats at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

WEIGHTS_AT_ONCE = 2**22  # dequantized at a time: no more than this of a model is ever held as floats
ROWS_MULTIPLE = 64  # of output rows, so that the blocks of every kernel layout stay whole


def multiply(
    inputs: torch.Tensor,
    dequantize: Callable[[int, int], torch.Tensor],
    out_features: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The product inputs W^T + bias: (rows, in_features) -> (rows, out_features).

    dequantize: (start, stop) -> those output rows of W, (stop - start, in_features); start is a multiple of 64.
    """
    step = max(WEIGHTS_AT_ONCE // inputs.shape[1] // ROWS_MULTIPLE, 1) * ROWS_MULTIPLE
    parts = []
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        parts.append(F.linear(inputs, dequantize(start, stop), None if bias is None else bias[start:stop]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
