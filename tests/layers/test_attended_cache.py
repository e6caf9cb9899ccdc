"""Votes, and whom they keep; the cache sees the queries, or says that it does not."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from squeeze.core.errors import SqueezeError
from squeeze.layers.attended_cache import NOTE, SHOWN, AttendedCache, MostAttended, shown, votes
from tests.tiny import tiny_model

HITTERS = AttendedCache(6, 2, 2, voters=2, pooled=1, anew=False)
LARGE = 100.0  # a logit to which a softmax gives all


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_votes_are_attention_probabilities_hand_computed() -> None:
    """Of three tokens the last two vote: one sees the first two alike, the other the second alone."""
    keys = torch.tensor([[[[0.0], [0.0], [LARGE]]]])
    queries = torch.tensor([[[[1.0], [-1.0]]]])
    torch.testing.assert_close(votes(queries, keys, 1.0), torch.tensor([[[1.0, 1.0, 0.0]]]))
    keys[..., 1, 0] = -LARGE
    torch.testing.assert_close(votes(queries, keys, 1.0), torch.tensor([[[1.0, 1.0, 0.0]]]))
    torch.testing.assert_close(votes(-queries, keys, 1.0), torch.tensor([[[0.0, 1.0, 1.0]]]))


def test_heads_that_share_keys_vote_together() -> None:
    keys, queries = random(2, 2, 7, 8), random(2, 6, 3, 8, seed=1)
    found = votes(queries, keys, 0.5)
    assert found.shape == (2, 2, 7)
    alone = [votes(queries[:, head : head + 1], keys[:, head // 3 : head // 3 + 1], 0.5) for head in range(6)]
    torch.testing.assert_close(found[:, 1:], alone[3] + alone[4] + alone[5])
    torch.testing.assert_close(found.sum(-1), torch.full((2, 2), 9.0))


def spoken(layer: MostAttended, number: int, looks_at: int | None, width: int = 16) -> list[int]:
    """Take in token ``number``, which looks at one token alone (None: at all alike); return whom it could see.

    A key is one-hot in its number; a value is the number.
    """
    key = torch.zeros(1, 1, 1, width)
    key[..., number] = 1
    query = torch.zeros(1, 1, 1, width)
    if looks_at is not None:
        query[..., looks_at] = LARGE
    _, values = layer.update(key, torch.full((1, 1, 1, width), float(number)))
    layer.attended(query, 1.0)
    return values[0, 0, :, 0].int().tolist()


def test_heavy_hitters_stay_hand_checked() -> None:
    """Room for 6, pieces of 2, the newest 2 and the 2 of the most votes of all time."""
    layer = MostAttended(HITTERS)
    looks = [0, 1, 1, 1, 3, 3, 3, 3, 3, 4]
    seen = [spoken(layer, number, looks_at) for number, looks_at in enumerate(looks)]
    assert seen[5] == [0, 1, 2, 3, 4, 5]
    assert seen[6] == [1, 3, 4, 5, 6], "1 has three votes, 3 has two"
    assert seen[8] == [1, 3, 6, 7, 8], "3 has four by now, and 1 still three"
    assert layer.get_seq_length() == 10
    assert layer.get_mask_sizes(1) == (5, 6)


def test_only_the_last_of_a_piece_vote_anew_each_time() -> None:
    """SnapKV: room for 8, pieces of 4, of which the last 2 vote and stay."""
    layer = MostAttended(AttendedCache(8, 2, 4, voters=2, pooled=1, anew=True))
    seen = [spoken(layer, number, looks_at) for number, looks_at in enumerate([0, 0, 0, 0, 1, 1, 2, 3])]
    assert seen[7] == list(range(8))
    # Of 0-7, 6 and 7 stay, and 2 and 3, at which they looked; votes for 0 and 1 came from others, or are forgotten.
    assert spoken(layer, 8, None) == [2, 3, 6, 7, 8]
    spoken(layer, 9, 6), spoken(layer, 10, 7)
    assert spoken(layer, 11, 3) == [2, 3, 6, 7, 8, 9, 10, 11]
    assert spoken(layer, 12, None) == [3, 7, 10, 11, 12], "6 had a vote of 9, which is none of the last two"


def test_neighbours_of_what_is_attended_to_stay_with_it() -> None:
    layer = MostAttended(AttendedCache(12, 2, 6, voters=2, pooled=3, anew=True))
    for number in range(12):
        spoken(layer, number, {10: 5, 11: 6}.get(number, 0))
    assert spoken(layer, 12, None) == [4, 5, 6, 7, 10, 11, 12]


def test_each_head_of_each_text_keeps_its_own() -> None:
    layer = MostAttended(HITTERS)
    for number in range(6):
        key = torch.zeros(2, 2, 1, 8)
        key[..., number] = 1
        query = torch.zeros(2, 2, 1, 8)
        for text, head, looked_at in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)):
            query[text, head, 0, looked_at] = LARGE if looked_at <= number else 0
        layer.update(key, key.clone())
        layer.attended(query, 1.0)
    kept = layer.values.argmax(-1)
    assert [looked_at in kept.view(4, 4)[looked_at] for looked_at in range(4)] == [True] * 4
    assert torch.equal(layer.keys, layer.values)
    assert kept[..., -2:].eq(torch.tensor([4, 5])).all()


def test_what_is_stored_is_counted_with_its_votes() -> None:
    layer = MostAttended(HITTERS)
    spoken(layer, 0, 0)
    assert [tensor.shape[-1] for tensor in layer.tensors()] == [16, 16, 1]
    layer.reset()
    assert layer.get_seq_length() == 0


def test_attention_that_is_shown_is_sdpas() -> None:
    config = tiny_model("llama").config
    HITTERS(config)
    assert config._attn_implementation == SHOWN  # type: ignore[union-attr]
    module = torch.nn.Module()
    query, key, value = random(1, 2, 3, 8), random(1, 2, 3, 8, seed=1), random(1, 2, 3, 8, seed=2)
    found, _ = shown(module, query, key, value, None, scaling=0.3)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_a_cache_that_nobody_uses_any_more_is_let_go_at_once() -> None:
    """Keys and their layer do not hold each other: memory that only the garbage collector frees would be measured."""
    subject = tiny_model("llama")
    cache = HITTERS(subject.config)
    subject(torch.tensor([[1, 2]]), past_key_values=cache)
    kept = weakref.ref(cache.layers[0])
    assert kept() is not None
    del cache
    assert kept() is None


def test_attention_that_is_not_shown_is_found_out() -> None:
    layer = MostAttended(HITTERS)
    keys, _ = layer.update(random(1, 1, 1, 4), random(1, 1, 1, 4))
    assert getattr(keys, NOTE) is layer
    with pytest.raises(SqueezeError, match=f"not shown to the cache; expected attn_implementation '{SHOWN}'"):
        layer.update(random(1, 1, 1, 4), random(1, 1, 1, 4))
