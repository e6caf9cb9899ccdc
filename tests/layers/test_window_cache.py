"""The window: which tokens stay, where keys are moved to, and by which angles."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from squeeze.core.errors import Unsupported
from squeeze.layers.cache_budget import Budget
from squeeze.layers.window_cache import SinksAndWindow, WindowCache, rotary_frequencies, turned
from tests.tiny import tiny_model

FREQUENCIES = torch.tensor([0.5, 0.01])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numbered(first: int, count: int) -> torch.Tensor:
    """Keys of one head and one channel: their numbers in the text."""
    return torch.arange(first, first + count, dtype=torch.float32).view(1, 1, -1, 1)


def test_the_first_and_the_newest_stay_hand_checked() -> None:
    """Room for 6, pieces of 2, a sink: behind an even number of tokens 4 are held, the sink and the newest 3."""
    layer = SinksAndWindow(Budget(6, 2), 1, None)
    seen = [layer.update(numbered(i, 1), 10 * numbered(i, 1)) for i in range(9)]
    assert [keys.flatten().tolist() for keys, _ in seen[4:]] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [0, 3, 4, 5, 6],
        [0, 3, 4, 5, 6, 7],
        [0, 5, 6, 7, 8],
    ]
    assert all(torch.equal(values, 10 * keys) for keys, values in seen)
    assert layer.get_seq_length() == layer.read == 9
    assert layer.get_mask_sizes(1) == (6, 4), "five are held, of which a mask thinks that they are the newest"
    assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes, "what was forgotten is let go"


def test_a_window_without_sinks_forgets_the_first_tokens() -> None:
    layer = SinksAndWindow(Budget(4, 2), 0, None)
    for i in (0, 2, 4):
        keys, _ = layer.update(numbered(i, 2), numbered(i, 2))
    assert keys.flatten().tolist() == [2, 3, 4, 5]


def test_with_rotary_positions_keys_move_up_in_the_cache() -> None:
    """Each key is found turned to its place: as if it had been computed there."""
    raw = random(1, 2, 12, 4)
    layer = SinksAndWindow(Budget(8, 2), 2, FREQUENCIES)
    for i in range(12):
        position = layer.get_seq_length()
        assert position == (i if i < 8 else 6 + i % 2)
        assert layer.get_mask_sizes(1) == (position + 1, 0)
        keys, _ = layer.update(turned(raw[..., i : i + 1, :], position * FREQUENCIES), raw[..., i : i + 1, :])
    places = torch.arange(8).view(-1, 1) * FREQUENCIES
    held = raw[..., [0, 1, *range(6, 12)], :]
    expected = torch.stack([turned(held[..., place, :], places[place]) for place in range(8)], dim=-2)
    torch.testing.assert_close(keys, expected)


def test_a_pair_is_turned_hand_computed() -> None:
    """A quarter turn takes channel 0 to its like in the second half, 2; channel 4 is beyond those that turn."""
    keys = torch.tensor([1.0, 0.0, 0.0, 5.0, 7.0])
    found = turned(keys, torch.tensor([math.pi / 2, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0, 5.0, 7.0]))


def test_turning_is_what_a_rotary_embedding_does() -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    rotary, raw = LlamaRotaryEmbedding(config), random(1, 2, 3, 16)
    later, earlier = (
        apply_rotary_pos_emb(raw, raw, *rotary(raw, position_ids=torch.tensor([[5, 90, 700]]) - back))[1]
        for back in (0, 5)
    )
    frequencies = rotary_frequencies(config)
    assert frequencies is not None
    torch.testing.assert_close(turned(later, -5 * frequencies), earlier, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_angles_are_the_models_own(name: str) -> None:
    model = tiny_model(name)
    found = rotary_frequencies(model.config)
    torch.testing.assert_close(found, model.base_model.rotary_emb.inv_freq)  # type: ignore[union-attr]


def test_angles_of_longer_contexts_are_the_models_own_too() -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=512, rope_parameters=scaled)
    torch.testing.assert_close(rotary_frequencies(config), LlamaRotaryEmbedding(config).inv_freq)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_positions_are_not_moved(name: str) -> None:
    config = tiny_model(name).config
    assert rotary_frequencies(config) is None
    layer = WindowCache(8, 1, 2)(config).layers[0]
    assert layer.frequencies is None


def test_angles_that_hang_on_the_length_are_refused() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, rope_parameters=dynamic)
    with pytest.raises(Unsupported, match="kind 'dynamic' cannot be moved; expected default or linear, llama3, yarn"):
        rotary_frequencies(config)


def test_a_cache_is_empty_again_after_reset() -> None:
    layer = SinksAndWindow(Budget(4, 2), 1, None)
    layer.update(numbered(0, 2), numbered(0, 2))
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.get_mask_sizes(2) == (2, 0)
