"""Score given tokens, at the least work: the log-probability that a model gives to each of them.

The continuations of one context (a question's choices) lie behind it in one row, blind to one another, so that the
context is computed once; rows of like length share a batch; the head is applied where a token is to be scored, nowhere
else, a few positions at a time, so that no logits file of the whole batch ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from squeeze.models.architecture import last_hidden_state
from squeeze.models.logits import Logits, logits_of

HEAD_ROWS = 256  # positions the head is applied to at once: enough for a fast matmul, few enough to be reused by malloc
SOFTMAX_ROWS = 8  # of those, the positions whose float32 logits exist at once: they stay in the processor's cache


class Request(NamedTuple):
    """Hold tokens to score, at least one, behind a context of at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Hold one context and the continuations behind it. owners: the caller's number of each continuation."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]

    @property
    def length(self) -> int:
        """Return how many tokens the model sees: a continuation's last one is only predicted."""
        return len(self.context) + sum(len(continuation) - 1 for continuation in self.continuations)


class Predicted(NamedTuple):
    """Hold what the head is applied to, in the order of rows and continuations, for the T tokens of a batch.

    hidden: (T, hidden), from which the token is predicted; tokens: (T,) int64; owners: (T,) int64, on the CPU.
    """

    hidden: Tensor
    tokens: Tensor
    owners: Tensor


def pack(requests: Sequence[Request], limit: int) -> list[Row]:
    """Return rows in which each context stands once (while a row has at most ``limit`` tokens), in order of arrival."""
    open_rows: dict[tuple[int, ...], Row] = {}
    full: list[Row] = []
    for number, (context, continuation) in enumerate(requests):
        row = open_rows.get(context, Row(context, (), ()))
        if row.continuations and row.length + len(continuation) - 1 > limit:
            full.append(row)
            row = Row(context, (), ())
        open_rows[context] = Row(context, (*row.continuations, continuation), (*row.owners, number))
    return [*full, *open_rows.values()]


def one_by_one(requests: Sequence[Request]) -> list[Row]:
    """Return a row for each request."""
    return [Row(context, (continuation,), (number,)) for number, (context, continuation) in enumerate(requests)]


def by_length(rows: Sequence[Row]) -> list[Row]:
    """Sort rows, longest first, so that neighbours need little padding; ties by content: the order is everyone's."""
    return sorted(rows, key=lambda row: (-row.length, row.context, row.continuations))


def batches(rows: Sequence[Row], token_budget: int) -> Iterator[list[Row]]:
    """Yield neighbouring rows, as many as fit ``token_budget`` tokens, padding included; at least one."""
    batch: list[Row] = []
    for row in rows:
        longest = max(item.length for item in (*batch, row))
        if batch and longest * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def predict(model: nn.Module, rows: Sequence[Row], states: Callable[..., Tensor] = last_hidden_state) -> Predicted:
    """Run the decoder on one batch and keep what predicts the rows' continuations.

    states: (model, **inputs) -> (rows, tokens, hidden).
    """
    device = next(model.parameters()).device
    length = max(row.length for row in rows)
    inputs = {"input_ids": _padded([_inputs(row) for row in rows], length)}
    if any(len(row.continuations) > 1 for row in rows):
        inputs["position_ids"] = _padded([_positions(row) for row in rows], length)
        inputs["attention_mask"] = branch_mask(_padded([_branches(row) for row in rows], length, -1))
    hidden = states(model, **{name: value.to(device) for name, value in inputs.items()}, use_cache=False)
    sources = [number * length + position for number, row in enumerate(rows) for position in _sources(row)]
    return Predicted(
        hidden.flatten(0, 1)[torch.tensor(sources, device=device)],
        torch.tensor([token for row in rows for token in chain(*row.continuations)], device=device),
        torch.tensor(
            [owner for row in rows for owner, tokens in zip(row.owners, row.continuations, strict=True) for _ in tokens]
        ),
    )


def branch_mask(branches: Tensor) -> Tensor:
    """Return who sees whom, (rows, 1, tokens, tokens) bool.

    branches: that of each token, (rows, tokens); 0 is the context, -1 padding.
    A token sees earlier tokens of the context and of its own branch. (Padding sees some too: a softmax over nothing
    would be NaN. Nothing sees padding but padding.)
    """
    seen, seeing = branches[:, None, None, :], branches[:, None, :, None]
    return ((seen == 0) | (seen == seeing)).tril()


def log_probabilities(model: nn.Module, predicted: Predicted) -> tuple[Tensor, Tensor]:
    """Return what ``scored`` does, by the model's own way to its logits."""
    return scored(logits_of(model), predicted)


@torch.inference_mode()
def scored(logits: Logits, predicted: Predicted) -> tuple[Tensor, Tensor]:
    """Return log-probabilities in nats, (T,) float32, and whether no token was likelier, (T,) bool; on the CPU.

    logits: (n, hidden) -> (n, vocabulary), of some rows of what predicts the tokens.
    """
    log_probability, greedy = [], []
    for start in range(0, len(predicted.tokens), HEAD_ROWS):
        part = slice(start, start + HEAD_ROWS)
        outputs, targets = logits(predicted.hidden[part]), predicted.tokens[part]
        for few, tokens in zip(torch.split(outputs, SOFTMAX_ROWS), torch.split(targets, SOFTMAX_ROWS), strict=True):
            wide = few.float()
            log_probability.append(-F.cross_entropy(wide, tokens, reduction="none"))
            greedy.append(wide.argmax(-1) == tokens)
    return torch.cat(log_probability).cpu(), torch.cat(greedy).cpu()


def _inputs(row: Row) -> list[int]:
    return [*row.context, *chain(*(tokens[:-1] for tokens in row.continuations))]


def _positions(row: Row) -> list[int]:
    start = len(row.context)
    return [*range(start), *chain(*(range(start, start + len(tokens) - 1) for tokens in row.continuations))]


def _branches(row: Row) -> list[int]:
    branches = ([number] * (len(tokens) - 1) for number, tokens in enumerate(row.continuations, start=1))
    return [*[0] * len(row.context), *chain(*branches)]


def _sources(row: Row) -> list[int]:
    """Return, for each token to score, the place in the row from which it is predicted."""
    sources, start = [], len(row.context)
    for tokens in row.continuations:
        sources += [len(row.context) - 1, *range(start, start + len(tokens) - 1)]
        start += len(tokens) - 1
    return sources


def _padded(lists: Sequence[list[int]], length: int, filler: int = 0) -> Tensor:
    return torch.tensor([items + [filler] * (length - len(items)) for items in lists])
