"""The quantized cache: what it gives back, what it keeps, and which tokens stay as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from squeeze.layers.kv_cache import Codes, QuantizedCache, QuantizedKeysAndValues


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_codes_of_a_hand_computed_group() -> None:
    codes = Codes.of(torch.tensor([[-1.0, 0.0, 0.9, 2.0, 5.0, 5.0, 5.0, 5.0]]), 2, 4)
    assert codes.minima.tolist() == [[-1.0, 5.0]]
    assert codes.scales.tolist() == [[1.0, 0.0]]
    assert codes.packed.tolist() == [[0 | 1 << 2 | 2 << 4 | 3 << 6, 0]]
    assert codes.numbers().tolist() == [[-1.0, 0.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_number_is_off_by_half_a_step_at_most(bits: int, dtype: torch.dtype) -> None:
    numbers = random(3, 64).to(dtype)
    codes = Codes.of(numbers, bits, 16)
    error = (codes.numbers().float() - numbers.float()).abs().unflatten(-1, (-1, 16))
    rounding = 0.0 if dtype == torch.float32 else 0.02  # of scales and products, in bfloat16
    assert (error <= 0.501 * codes.scales.float().unsqueeze(-1) + rounding).all()


def test_keys_are_grouped_by_channel_and_values_by_token() -> None:
    """A channel of the keys, and a token of the values, that is a thousand times as large spoils no other."""
    layer = QuantizedKeysAndValues(4, 16)
    keys, values = random(1, 2, 32, 16), random(1, 2, 32, 16, seed=1)
    keys[..., 3] *= 1000
    values[..., 5, :] *= 1000
    layer.update(keys, values)
    rounded_keys, rounded_values = layer.update(*(torch.zeros(1, 2, 1, 16) for _ in range(2)))
    for rounded, exact, large in ((rounded_keys, keys, (..., 3)), (rounded_values, values, (..., 5, slice(None)))):
        error = (rounded[..., :32, :] - exact).abs()
        assert error[large].max() > 10
        error[large] = 0
        assert 0.01 < error.max() < 0.25


def test_tokens_wait_until_they_fill_a_group_and_are_rounded_once() -> None:
    layer, keys, values = QuantizedKeysAndValues(4, 8), random(1, 2, 21, 16), random(1, 2, 21, 16, seed=1)
    seen = [layer.update(keys[..., i : i + 1, :], values[..., i : i + 1, :])[0].clone() for i in range(21)]
    assert layer.get_seq_length() == 21
    assert layer.keys.shape[-2] == 5
    assert torch.equal(seen[7], keys[..., :8, :])  # the token that fills a group still sees it as it is
    assert not torch.equal(seen[8][..., :8, :], keys[..., :8, :])
    assert torch.equal(seen[8][..., :8, :], seen[20][..., :8, :])
    at_once = QuantizedKeysAndValues(4, 8)
    assert torch.equal(at_once.update(keys, values)[0], keys)  # a prompt attends to itself as it is
    assert all(torch.equal(*pair) for pair in zip(at_once.tensors(), layer.tensors(), strict=True))
    for waiting in (at_once.keys, at_once.values):  # what was rounded is let go
        assert waiting.untyped_storage().nbytes() == waiting.nbytes
    layer.reset()
    assert layer.get_seq_length() == 0


def test_a_hand_checked_cache_of_eleven_tokens() -> None:
    """Groups of 4, residual 4, 2 bits. 0, 1, 2, 9 has a step of 3, and comes back as 0, 0, 3, 9.

    Keys have those four as tokens of one channel, values as channels of one token. After 8 tokens the first group has
    4 newer ones, and is rounded; of 11 the second has 3, and is not; the twelfth rounds it.
    """
    numbers, back = torch.tensor([0.0, 1.0, 2.0, 9.0]), torch.tensor([0.0, 0.0, 3.0, 9.0])
    keys = numbers.repeat(3)[:, None].expand(12, 4)[None, None].clone()
    values = numbers.expand(12, 4)[None, None].clone()
    layer = QuantizedKeysAndValues(2, 4, residual=4)
    for token in range(12):
        seen_keys, seen_values = layer.update(keys[..., token : token + 1, :], values[..., token : token + 1, :])
        rounded = 0 if token < 8 else 4
        assert seen_keys[0, 0, :, 0].tolist() == [*back.repeat(3)[:rounded], *numbers.repeat(3)[rounded : token + 1]]
        assert seen_values[0, 0, :rounded].tolist() == [back.tolist()] * rounded
        assert seen_values[0, 0, rounded:].tolist() == [numbers.tolist()] * (token + 1 - rounded)
        assert layer.keys.shape[-2] == layer.values.shape[-2] == {7: 4, 8: 5, 9: 6, 10: 7, 11: 4}.get(token, token + 1)
    assert layer.get_seq_length() == 12


@pytest.mark.parametrize("prompt", [1, 15, 16, 23, 24, 40])
def test_the_newest_tokens_are_always_as_they_were(prompt: int) -> None:
    """However they came: at least the newest R, all in a group before the R-th newest rounded, and never one fewer."""
    residual, group = 16, 8
    keys, values = random(1, 2, 60, 16), random(1, 2, 60, 16, seed=1)
    layer = QuantizedKeysAndValues(2, group, residual)
    layer.update(keys[..., :prompt, :], values[..., :prompt, :])
    for token in range(prompt, 60):
        seen = layer.update(keys[..., token : token + 1, :], values[..., token : token + 1, :])
        exact = token - max(0, token - residual) // group * group + 1  # itself, and what was left before it
        assert residual < exact <= residual + group or token < residual
        for found, given in zip(seen, (keys, values), strict=True):
            same = (found == given[..., : token + 1, :]).all(dim=-1).all(dim=1)[0]
            assert same[-exact:].all()
            assert not same[:-exact].any()


def test_a_factory_makes_a_cache_of_one_layer_per_block() -> None:
    factory = QuantizedCache(4, 32, 128)
    layers = factory(SimpleNamespace(num_hidden_layers=3)).layers
    assert [(layer.bits, layer.group_size, layer.residual) for layer in layers] == [(4, 32, 128)] * 3
    assert factory.group == 32
