"""Go through the cache of keys and values that a subject generates with; count the bytes that it keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from squeeze.models.architecture import last_hidden_state, text_config
from squeeze.models.subject import Subject
from squeeze.runtimes.contract import Generation, States


def cache_of(subject: Subject) -> Cache:
    """Return an empty cache for one generation: the subject's own, or one that keeps all as it is."""
    config = text_config(subject.model)
    return DynamicCache(config=config) if subject.cache is None else subject.cache(config)


def prompt_group(subject: Subject) -> int | None:
    """Return how many tokens of a prompt are read at a time; None: all at once, as a cache allows that forgets none."""
    return getattr(subject.cache, "prompt_group", None)


def bytes_per_token(cache: Cache) -> float:
    """Return the bytes that all layers keep for each token of one text that was read, also where some were forgotten.

    Counted are the tensors that are there, scales and all.
    """
    first: Any = cache.layers[0]
    texts, tokens = first.keys.shape[0], first.read if hasattr(first, "read") else first.get_seq_length()
    total = sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(layer))
    return total / int(texts * tokens)


def tokens_held(generation: Generation, read: int) -> int:
    """Return of how many of the tokens that were read the cache of a generation still holds something.

    Of all, but of a cache whose layers forget: those count what they have read, and what they hold lies in ``keys``.
    An engine that shows no such cache forgets nothing. read: tokens of one text.
    """
    layers = getattr(getattr(generation, "cache", None), "layers", ())
    if not layers or not hasattr(layers[0], "read"):
        return read
    return int(layers[0].keys.shape[-2])


def states_of(subject: Subject) -> States:
    """Return what computes hidden states where text is scored: one forward or, with a cache, as in generation.

    Then a text goes through the cache a group of tokens at a time, and each sees what it would see when generated.
    """
    cache = subject.cache
    if cache is None:
        return last_hidden_state

    def through_cache(model: nn.Module, input_ids: Tensor, **_: Any) -> Tensor:
        kept = cache(text_config(model))
        parts = [
            last_hidden_state(model, input_ids=part, past_key_values=kept, use_cache=True)
            for part in torch.split(input_ids, cache.group, dim=1)
        ]
        return torch.cat(parts, dim=1)

    return through_cache


def logits_of(subject: Subject, token_ids: Tensor, kept: Cache) -> Tensor:
    """Return the logits after each given token, (rows, tokens, vocabulary), through an empty cache of the subject's."""
    group = token_ids.shape[1] if subject.cache is None else subject.cache.group
    parts = [
        subject.model(input_ids=part, past_key_values=kept, use_cache=True).logits
        for part in torch.split(token_ids, group, dim=1)
    ]
    return torch.cat(parts, dim=1)


def _tensors(layer: Any) -> tuple[Tensor, ...]:
    return layer.tensors() if hasattr(layer, "tensors") else (layer.keys, layer.values)
