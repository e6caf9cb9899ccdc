"""Read once more, as it is scored, what a classifier answered while the clock ran: another model answers otherwise.

Layers that are left out for texts of a certain length, for calls without a mask, or once the warm-up is over, give
other logits than those whose accuracy is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from squeeze.probes.classes import class_logits, is_dependent
from squeeze.probes.realised import positions
from squeeze.runtimes.contract import TorchEngine

BEYOND = 8  # tokens of padding: a text has another length than when it was timed


def apart(engine: TorchEngine, texts: Tensor, timed: Sequence[Sequence[float]]) -> list[float]:
    """Return how far the logits that were timed lie from the scored ones, and how large those are: two sums of squares.

    texts: (rows, tokens) int64; timed: (rows, classes), the answers to them. Logits are taken from the mean of their
    row, which no class hangs on. Both sums are 0 where the scored forward gives no numbers.
    """
    scored, found = _centred(_scored(engine, texts)), _centred(torch.tensor(timed, dtype=torch.float32))
    if not scored.isfinite().all():
        return [0.0, 0.0]
    distance = found.nan_to_num(0.0, 0.0, 0.0) - scored
    return [float(each.double().square().sum()) for each in (distance, scored)]


def _scored(engine: TorchEngine, texts: Tensor) -> Tensor:
    """Return the logits of texts as the quality stage takes them, padded and masked: in a batch, or each alone."""
    model, rows = engine.subject.model, texts.tolist()
    longer = texts.shape[1] + BEYOND
    together = [[row] for row in rows] if is_dependent(model) else [rows]
    return torch.cat([class_logits(model, batch, min(longer, positions(model) or longer)) for batch in together])


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)
