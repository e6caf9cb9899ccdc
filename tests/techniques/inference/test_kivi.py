"""The quantized cache: what it gives back, what it keeps, and that generation and scoring go through it alike."""

from __future__ import annotations

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.kv_cache import Codes, QuantizedKeysAndValues
from squeeze.models.subject import Subject
from squeeze.probes import latency
from squeeze.probes.kv_cache import bytes_per_token, cache_of, states_of
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from tests.tiny import CAUSAL, tiny_subject

EAGER = {"device": "cpu", "threads": 1, "compile": False}
TOKEN_IDS = torch.randint(256, (2, 45), generator=torch.Generator().manual_seed(0))


def cached(bits: int = 8, group_size: int = 8, name: str = "llama", dtype: str = "float32") -> Subject:
    return KIVI(bits, group_size).apply(tiny_subject(name, dtype), CalibrationText.empty())


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


@pytest.mark.parametrize(("bits", "share"), [(8, 9 / 16), (4, 5 / 16), (2, 3 / 16)])
def test_memory_is_really_smaller(bits: int, share: float) -> None:
    """Of a whole number of groups of 32, heads of 64: codes, and 32 bits of scale and minimum for 32 numbers."""
    plain, small = tiny_subject("llama", "bfloat16"), cached(bits, 32, dtype="bfloat16")
    caches = {}
    for name, subject in (("plain", plain), ("small", small)):
        subject.model.config.head_dim = 64
        cache = caches[name] = cache_of(subject)
        for layer in range(2):
            cache.update(*(random(3, 2, 128, 64).to(torch.bfloat16) for _ in range(2)), layer)
    assert bytes_per_token(caches["plain"]) == 2 * 2 * 2 * 64 * 2
    assert bytes_per_token(caches["small"]) == share * bytes_per_token(caches["plain"])


@torch.inference_mode()
def generated_states(subject: Subject, token_ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Hidden states of a prompt and then of one token after the other, through the cache."""
    cache, base = cache_of(subject), subject.model.base_model
    steps = [token_ids[:, :prompt], *token_ids[:, prompt:].split(1, dim=1)]
    return torch.cat(
        [base(input_ids=step, past_key_values=cache, use_cache=True).last_hidden_state for step in steps], 1
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_text_is_scored_as_it_is_generated(name: str) -> None:
    """One group at a time gives what one token at a time gives: each sees its own group exactly, all before rounded."""
    subject, forwards = cached(4, 8, name), []
    with torch.inference_mode():
        with subject.model.base_model.register_forward_pre_hook(lambda *_: forwards.append(1)):
            scored = states_of(subject)(subject.model, input_ids=TOKEN_IDS, use_cache=False)
        exact = states_of(tiny_subject(name))(subject.model, input_ids=TOKEN_IDS, use_cache=False)
    assert len(forwards) == 6  # of 45 tokens
    generated = generated_states(subject, TOKEN_IDS, prompt=8)
    torch.testing.assert_close(scored, generated, rtol=0, atol=2e-3 * float(scored.abs().max()))
    assert torch.allclose(scored[:, :8], exact[:, :8], atol=1e-4)
    assert (scored[:, 8:] - exact[:, 8:]).norm() > 5 * (scored - generated).norm()


def test_more_bits_are_nearer() -> None:
    with torch.inference_mode():
        exact = tiny_subject("llama").model.base_model(TOKEN_IDS).last_hidden_state
        distances = [
            float((states_of(subject)(subject.model, input_ids=TOKEN_IDS) - exact).norm())
            for subject in (cached(8), cached(4), cached(2))
        ]
    assert distances[0] < 0.2 * distances[1] < 0.2 * distances[2]
    assert 0 < distances[0] < 0.02 * float(exact.norm())


def test_generation_goes_through_the_cache_after_saving_and_loading(tmp_path) -> None:
    protocol = {"prompt_tokens": 20, "decode_tokens": 8, "warmup_rounds": 1}
    artifact.save(cached(2), tmp_path)
    generation = latency.starter(artifact.load(tmp_path), EAGER, protocol)()
    generation.prefill(TOKEN_IDS[:, :20])
    for _ in range(8):
        generation.decode()
    assert [layer.keys.shape[-2] for layer in generation.cache.layers] == [28 % 8] * 2
    assert all(isinstance(layer, QuantizedKeysAndValues) for layer in generation.cache.layers)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(Unsupported, match="no 3-bit codes"):
        cached(3)
    for group_size in (12, 0):
        with pytest.raises(Unsupported, match=f"groups of {group_size} tokens"):
            cached(4, group_size)
    with pytest.raises(Unsupported, match="no language-modelling head"):
        cached(name="bert")
    wide = tiny_subject("llama")
    wide.model.config.head_dim = 24
    with pytest.raises(Unsupported, match="group_size 16 does not divide the 24 channels of a head"):
        KIVI(4, 16).apply(wide, CalibrationText.empty())
    forgetful = tiny_subject("llama")
    forgetful.model.config.sliding_window = 8
    with pytest.raises(Unsupported, match="forgets tokens by itself"):
        KIVI(4, 8).apply(forgetful, CalibrationText.empty())
    with pytest.raises(Unsupported, match="use runtime=eager"):
        latency.starter(
            cached(), {**EAGER, "compile": True}, {"prompt_tokens": 4, "decode_tokens": 4, "warmup_rounds": 1}
        )
