"""Continue prompts greedily, as a user would: how soon a compressed model says something else than its original.

What is predicted of given text hides it: one other token, and all that follows answers to another text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from squeeze.runtimes.contract import Engine
from squeeze.sources import corpora

PROMPT = 64  # tokens of the evaluation text that are continued
ROWS = 16  # prompts continued together: rows of one length need no padding, so none sees another
ALONE = 4  # one prompt of so many is continued by models that must be run one text at a time, at many times the cost


def prompts(corpus: str, engine: Engine, count: int) -> Tensor:
    """Return consecutive pieces of a corpus, (count, PROMPT) int64. Raises SqueezeError where it is too short."""
    return corpora.tokens(corpus, engine.tokenizer, count * PROMPT).view(count, PROMPT)


def few(texts: Tensor) -> Tensor:
    """Return the first of the prompts (prompts, tokens), one of ALONE: those that are continued alone."""
    return texts[: max(1, len(texts) // ALONE)]


def continued(engine: Engine, texts: Tensor, tokens: int, together: int) -> npt.NDArray[np.int32]:
    """Return the tokens that greedy decoding puts behind each prompt: (prompts, tokens) int32.

    texts: (prompts, PROMPT) int64 on the engine's device; ``together`` of them at a time. Raises Unsupported when the
    model has too few positions.
    """
    made: list[list[int]] = []
    for batch in torch.split(texts, together):
        generation = engine.begin(texts.shape[1] + tokens)
        chosen = generation.prefill(batch).shape[1]
        while chosen < tokens:
            chosen += generation.decode().shape[1]
        made += [row[:tokens] for row in generation.token_ids()]
    return np.array(made, dtype=np.int32)
