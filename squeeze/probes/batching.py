"""Find out how requests may be batched for a model: whether a token's score depends on what else is in the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from squeeze.probes.scoring import Row, predict

Answer = Callable[[nn.Module, list[list[int]]], Tensor]  # (model, token ids of texts) -> what it makes of the first

TEXT = 32  # tokens whose hidden states are watched
CONTEXTS = 3  # different texts that stand beside them
BESIDE = 7  # texts in the other rows of a batch
NEARER = 0.3  # of the distance that counts as wrong; bfloat16 rounding gives 0.06, and 0.15 with weights of two bits


def batch_dependent(model: nn.Module) -> bool:
    """Tell whether activations are quantized with scales, or sorted into outliers, that other tokens of a batch move.

    A causal model's hidden states of a text are the same whatever follows it, bit for bit as long as the shapes are the
    same, whether it computes in float32 or bfloat16 and however its weights are stored. Where they are not, something
    is computed over all tokens of a call.
    """
    text, *others = _texts(model, 1 + CONTEXTS)
    first, *rest = [_hidden(model, text + other)[: len(text)] for other in others]
    return not all(torch.allclose(first, states, rtol=0, atol=0, equal_nan=True) for states in rest)


def row_dependent(model: nn.Module, answer: Answer | None = None) -> bool:
    """Tell whether other texts of a batch move what a model makes of one: its hidden states.

    Of a model that is ``batch_dependent``: what is computed over all tokens of a call does not care whose they are.
    Where only tokens that come later in the same text matter, the model looks ahead. answer: takes the place of the
    hidden states, for models that see a text as a whole.
    """
    text, *others = _texts(model, 1 + CONTEXTS * BESIDE)
    groups = [others[start : start + BESIDE] for start in range(0, len(others), BESIDE)]
    first, *rest = [(answer or _first_hidden)(model, [text, *group]) for group in groups]
    return not all(torch.allclose(first, states, rtol=0, atol=0, equal_nan=True) for states in rest)


def takes_branches(model: nn.Module) -> bool:
    """Tell whether the model heeds a mask of branches and given positions: packed continuations as if each were alone.

    That is: far nearer to what each has alone than where the second one sees the first.
    """
    context, left, right = (tuple(text) for text in _texts(model, 3))
    alone = torch.cat([predict(model, [Row(context, (branch,), (0,))]).hidden for branch in (left, right)])
    as_one_text = predict(model, [Row(context, (left + right,), (0,))]).hidden
    try:
        packed = predict(model, [Row(context, (left, right), (0, 1))]).hidden
    except (TypeError, ValueError, RuntimeError):  # an architecture without such arguments, or for other shapes
        return False
    return _distance(packed, alone) < NEARER * _distance(as_one_text, alone)


def _distance(states: Tensor, others: Tensor) -> float:
    return float((states - others).float().norm())


def _hidden(model: nn.Module, *texts: list[int]) -> Tensor:
    """Return the hidden states (texts * (tokens - 1), hidden) of a batch of texts, scored from the second token on."""
    return predict(model, [Row((token_ids[0],), (tuple(token_ids[1:]),), (0,)) for token_ids in texts]).hidden


def _first_hidden(model: nn.Module, texts: list[list[int]]) -> Tensor:
    return _hidden(model, *texts)[: TEXT - 1]


def _texts(model: nn.Module, count: int) -> list[list[int]]:
    """Return random texts, each of TEXT tokens: always the same for a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr,assignment]
    return torch.randint(vocabulary, (count, TEXT), generator=generator).tolist()
