"""The cache of keys and values that a subject generates with: which one, what it takes, and scoring through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from squeeze.layers.kv_cache import empty_cache
from squeeze.models.architecture import last_hidden_state
from squeeze.models.subject import Subject

States = Callable[..., Tensor]  # (model, **inputs) -> (batch, tokens, hidden)


def is_quantized(subject: Subject) -> bool:
    """Whether the subject claims a cache of its own."""
    return "kv_cache" in subject.claims


def cache_of(subject: Subject) -> Cache:
    """An empty cache for one generation."""
    config = subject.model.config
    return empty_cache(config, **subject.claims["kv_cache"]) if is_quantized(subject) else DynamicCache(config=config)


def bytes_per_token(cache: Cache) -> float:
    """Bytes that all layers keep of one token of one text: of the tensors that are there, scales and all."""
    first = cache.layers[0]
    texts, tokens = first.keys.shape[0], first.get_seq_length()
    total = sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(layer))
    return total / int(texts * tokens)


def states_of(subject: Subject) -> States:
    """How hidden states come about where text is scored: in one forward or, with a quantized cache, as in generation.

    Then a text goes through the cache a group of tokens at a time. A token sees those of its own group as they are and
    all earlier ones rounded, just as when it is generated: there, too, tokens wait until they fill a group.
    """
    if not is_quantized(subject):
        return last_hidden_state

    def through_cache(model: nn.Module, input_ids: Tensor, **_: Any) -> Tensor:
        cache, group = cache_of(subject), int(subject.claims["kv_cache"]["group_size"])
        parts = [
            last_hidden_state(model, input_ids=part, past_key_values=cache, use_cache=True)
            for part in torch.split(input_ids, group, dim=1)
        ]
        return torch.cat(parts, dim=1)

    return through_cache


def _tensors(layer: Any) -> tuple[Tensor, ...]:
    return layer.tensors() if hasattr(layer, "tensors") else (layer.keys, layer.values)
