"""Keep the keys and values of the tokens that were attended to most, and of the newest ones; forget the others.

Attention shows its queries to the cache: each layer's keys carry a note of who wants to see them, and the attention
function that this file registers with transformers heeds it. It attends as ``sdpa`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from squeeze.core.errors import SqueezeError
from squeeze.layers.cache_budget import Budget

SHOWN = "sdpa_shown"  # what transformers calls the attention function
NOTE = "asked_by"  # the attribute of keys that holds the layer which keeps them


@dataclass(frozen=True)
class AttendedCache:
    """Make caches whose layers are ``MostAttended`` of these settings.

    cache_tokens, piece: see ``cache_budget``; the others: see ``MostAttended``.
    """

    cache_tokens: int
    recent: int
    piece: int
    voters: int
    pooled: int
    anew: bool

    @property
    def group(self) -> int:
        """Return the tokens that go through at a time: tokens are forgotten where a piece ends, nowhere else."""
        return self.piece

    @property
    def prompt_group(self) -> int:
        """Return the tokens of a prompt that are read at a time: it, too, sees no more than the cache has room for."""
        return self.piece

    def __call__(self, config: Any) -> Cache:
        """Return an empty cache for one generation by a model of this configuration, whose attention is shown to it."""
        AttentionInterface.register(SHOWN, shown)
        AttentionMaskInterface.register(SHOWN, sdpa_mask)
        config._attn_implementation = SHOWN
        return Cache(layers=[MostAttended(self) for _ in range(config.num_hidden_layers)])


class MostAttended(DynamicLayer):  # type: ignore[misc] # transformers has no types
    """Cache the keys and values of one attention layer: of those tokens, head by head, that have the most votes.

    A vote for a token is the attention probability that a later one gives it, summed over the heads of queries that
    read the same keys. Where a piece of the text ends, the newest ``recent`` tokens are kept, and of the others those
    of the most votes, as many as there is room for. Positions are those of the text.

    settings: voters: the last tokens of each piece, which alone vote. pooled: neighbours, an odd number, over which
    votes are averaged before they are compared. anew: whether votes are forgotten where a piece ends.
    votes: (batch, heads, tokens) float32.
    """

    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, settings: AttendedCache) -> None:
        super().__init__()
        self.settings, self.budget = settings, Budget(settings.cache_tokens, settings.piece)
        self.votes: Tensor | None = None
        self.read = 0
        self.waits = False

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in new tokens, (batch, heads, tokens, head_dim), and return all there are, to be attended to.

        Raises SqueezeError as ``Budget.check`` does, and where what was returned last has been attended to by another
        function than ``shown``: nothing would ever be forgotten.
        """
        if self.waits:
            raise SqueezeError(f"attention was not shown to the cache; expected attn_implementation {SHOWN!r}")
        self.budget.check(self.read, key_states.shape[-2])
        keys, values = super().update(key_states, value_states)
        self.read += key_states.shape[-2]
        self.waits = True
        setattr(keys, NOTE, self)
        return keys, values

    def attended(self, queries: Tensor, scaling: float) -> None:
        """Count the votes of the newest tokens, and forget what is then too much.

        queries: (batch, heads of queries, tokens, head_dim), of the last tokens that were taken in.
        """
        self.waits = False
        count, held = queries.shape[-2], self.keys.shape[-2]
        before = self.keys.new_zeros((*self.keys.shape[:2], 0)).float() if self.votes is None else self.votes
        self.votes = F.pad(before, (0, held - before.shape[-1]))
        place = (self.read - count) % self.settings.piece  # of the first query
        silent = max(self.settings.piece - self.settings.voters - place, 0)
        if silent < count:
            self.votes = self.votes + votes(queries[..., silent:, :], self.keys, scaling)
        if gone := held - self.budget.held(self.read):
            self._keep(held - gone)
        if self.settings.anew and self.read % self.settings.piece == 0:
            self.votes = None

    def get_seq_length(self) -> int:
        """Count the tokens that were read: the position of the next one."""
        return self.read

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens are attended to, and the position of the first as a mask counts them."""
        held = super().get_seq_length()
        return held + query_length, self.read - held

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.votes, self.read, self.waits = None, 0, False

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors that are stored."""
        return (self.keys, self.values) if self.votes is None else (self.keys, self.values, self.votes)

    def _keep(self, count: int) -> None:
        """Keep so many tokens, in their order: the newest, and of the others those of the most votes."""
        assert self.votes is not None
        recent = self.settings.recent
        older = self.votes.shape[-1] - recent
        scores = self.votes[..., :older]
        if self.settings.pooled > 1:
            scores = F.avg_pool1d(scores, self.settings.pooled, stride=1, padding=self.settings.pooled // 2)
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., : count - recent].sort(dim=-1).values
        newest = torch.arange(older, older + recent, device=best.device).expand(*best.shape[:2], recent)
        kept = torch.cat([best, newest], dim=-1)
        self.votes = self.votes.gather(-1, kept)
        of_channels = kept.unsqueeze(-1).expand(*kept.shape, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(-2, of_channels), self.values.gather(-2, of_channels)


def votes(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Return how much attention the newest tokens give to each one: (batch, heads of keys, tokens) float32.

    queries: (batch, heads of queries, n, head_dim), of the newest n tokens; keys: (batch, heads of keys, tokens,
    head_dim), of all. Each sees itself and those before it; its probabilities sum to one a head of queries.
    """
    batch, heads = keys.shape[:2]
    of_keys = queries.float().reshape(batch, heads, -1, *queries.shape[2:])  # of each head, those that read it
    logits: Tensor = scaling * (of_keys @ keys.float().unsqueeze(2).mT)
    count, held = logits.shape[-2:]
    hidden = torch.ones(count, held, dtype=torch.bool, device=logits.device).triu(held - count + 1)
    return logits.masked_fill(hidden, -torch.inf).softmax(-1).sum(dim=(2, 3))


def shown(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attend as ``sdpa`` does, then show the queries to the cache layer that keeps these keys, where one asked."""
    outcome: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if (layer := vars(key).pop(NOTE, None)) is not None:
        scaling = settings.get("scaling")
        layer.attended(query, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return outcome
