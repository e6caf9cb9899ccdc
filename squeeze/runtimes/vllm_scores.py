"""Read the log-probabilities that vLLM gives of prompts: of their own tokens, or of all tokens in each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def of_places(found: Any, vocabulary: int) -> Tensor:
    """Return the log-probabilities of all tokens, (places, vocabulary) float32; of one that is left out, -inf.

    found: vLLM's ``FlatLogprobs``. Those of a place are a stretch of its lists ``token_ids`` and ``logprobs``, which
    ``start_indices`` and ``end_indices`` tell, in any order; a token may stand there twice. That of a place of which
    nothing is known is empty.
    """
    stretches = list(zip(found.start_indices, found.end_indices, strict=True))
    logs = torch.full((len(stretches), vocabulary), -torch.inf)
    for row, (start, stop) in zip(logs, stretches, strict=True):
        row[torch.tensor(found.token_ids[start:stop], dtype=torch.int64)] = torch.tensor(found.logprobs[start:stop])
    return logs


def of_prompt(found: Sequence[Mapping[int, Any] | None], tokens: Sequence[int]) -> list[float]:
    """Return the log-probabilities of a prompt's tokens after the first.

    found: of each token, what vLLM gives: of itself and of the likeliest one in its place, by id; None of the first.
    """
    return [float(each[token].logprob) for each, token in zip(found[1:], tokens[1:], strict=True) if each is not None]
