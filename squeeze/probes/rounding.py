"""Measure how far a model is from itself when the same mathematics is rounded otherwise: what lies below is no loss.

A text is read again in parts, each on the cached keys and values of those before: other shapes of every product and
sum, and all of them exact rewritings. Windows side by side in a batch would be no test: products are then split along
their rows, and give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from squeeze.models.architecture import last_hidden_state
from squeeze.probes.divergence import Divergence, wide_head
from squeeze.probes.scoring import Row, predict

PART = 256  # tokens read at once, at most
TOKENS = 4096  # at least so many are compared, where the text has them
HOW = f"against itself, read {PART} tokens at a time"


def rounding_floor(model: nn.Module, rows: Iterable[Row], baseline: Path) -> Divergence:
    """Compare a model with its own hidden states, kept in the folder ``baseline``, as ``Divergence`` does.

    rows: the windows of the text from which those were made, in order; as many are read as give TOKENS tokens.
    """
    head = wide_head(model)
    compare = Divergence(baseline, head, head)
    for row in enough(list(rows)):
        compare(predict(model, [row], in_parts).hidden)
    return compare


def enough(rows: list[Row]) -> list[Row]:
    """Return the first rows that have TOKENS tokens to score together; all where they have fewer."""
    before = accumulate((sum(map(len, row.continuations)) for row in rows), initial=0)
    return [row for row, tokens in zip(rows, before, strict=False) if tokens < TOKENS]


def in_parts(model: nn.Module, input_ids: Tensor, **_: Any) -> Tensor:
    """Return the last hidden states (rows, tokens, hidden) of a text that is read in parts: of PART tokens, or half."""
    kept = DynamicCache(config=model.config)
    length = min(PART, -(-input_ids.shape[1] // 2))
    parts = [
        last_hidden_state(model, input_ids=part, past_key_values=kept, use_cache=True)
        for part in torch.split(input_ids, length, dim=1)
    ]
    return torch.cat(parts, dim=1)
