"""Attention that forgets tokens, written out: all keys stay, and each head of each token sees a list of them.

It shares nothing with the caches: no cache, no mask, positions turned as complex numbers, one token after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from squeeze.layers.attended_cache import AttendedCache
from squeeze.layers.window_cache import WindowCache, rotary_frequencies
from squeeze.models.subject import Subject

NAME = "written_out"
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # of one head of keys, its queries, values -> outputs


@contextmanager
def written_out(subject: Subject) -> Iterator[None]:
    """Let the model attend as its cache would have it, without one, within the body."""
    config: Any = subject.model.config
    attend = _windowed(config, subject.cache) if isinstance(subject.cache, WindowCache) else _voted(subject.cache)
    before = config._attn_implementation

    def attention(_: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, **settings: Any) -> tuple[Tensor, None]:
        scaling = settings.get("scaling") or query.shape[-1] ** -0.5
        shared = query.shape[1] // key.shape[1]
        rows = [
            torch.cat(
                [
                    attend(query[row, head * shared : (head + 1) * shared], key[row, head], value[row, head], scaling)
                    for head in range(key.shape[1])
                ]
            )
            for row in range(len(query))
        ]
        return torch.stack(rows).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.inference_mode()
def states(subject: Subject, token_ids: Tensor) -> Tensor:
    """The hidden states of a text, (rows, tokens, hidden), by attention that is written out."""
    with written_out(subject):
        return subject.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state  # type: ignore


def _windowed(config: Any, cache: WindowCache) -> Attend:
    frequencies = rotary_frequencies(config)

    def moved(vectors: Tensor, steps: Tensor) -> Tensor:
        if frequencies is None:
            return vectors
        pairs = len(frequencies)
        numbers = torch.complex(vectors[..., :pairs], vectors[..., pairs : 2 * pairs])
        numbers = numbers * torch.exp(1j * steps[:, None] * frequencies)
        return torch.cat([numbers.real, numbers.imag, vectors[..., 2 * pairs :]], dim=-1)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        found, held = [], []
        for token in range(len(keys)):
            held.append(token)
            places = torch.arange(len(held)) - torch.tensor(held)  # from where the model has put them
            query = moved(queries[:, token], places[-1:])
            found.append((scaling * query @ moved(keys[held], places).T).softmax(-1) @ values[held])
            room = cache.cache_tokens - cache.piece
            if (token + 1) % cache.piece == 0 and len(held) > room:
                held = held[: cache.sinks] + held[len(held) - (room - cache.sinks) :]
        return torch.stack(found, dim=1)

    return attend


def _voted(cache: Any) -> Attend:
    assert isinstance(cache, AttendedCache)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        found, held, votes = [], [], torch.zeros(len(keys))
        for token in range(len(keys)):
            held.append(token)
            shares = (scaling * queries[:, token] @ keys[held].T).softmax(-1)
            found.append(shares @ values[held])
            ends = (token + 1) % cache.piece == 0
            if token % cache.piece >= cache.piece - cache.voters:
                votes[held] += shares.sum(0)
            room = cache.cache_tokens - cache.piece
            if ends and len(held) > room:
                older, newest = held[: len(held) - cache.recent], held[len(held) - cache.recent :]
                around = cache.pooled // 2
                score = {
                    token: sum(votes[each].item() for each in older[max(place - around, 0) : place + around + 1])
                    for place, token in enumerate(older)
                }
                held = sorted(sorted(older, key=lambda token: -score[token])[: room - cache.recent]) + newest
            if ends and cache.anew:
                votes.zero_()
        return torch.stack(found, dim=1)

    return attend
