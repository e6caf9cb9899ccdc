"""A subject's cache: what it keeps of a token, and that text is scored through it as it is generated."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from squeeze.layers.kv_cache import QuantizedCache
from squeeze.models.subject import Subject
from squeeze.runtimes.kv_cache import bytes_per_token, cache_of, logits_of, states_of
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from tests.tiny import CAUSAL, tiny_subject

TOKEN_IDS = torch.randint(256, (2, 45), generator=torch.Generator().manual_seed(0))


def cached(bits: int = 8, residual: int = 0, name: str = "llama") -> Subject:
    return KIVI(bits, 8, residual).apply(tiny_subject(name), CalibrationText.empty())


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bytes_of(subject: Subject, tokens: int) -> float:
    """Bytes that are kept of each token of three texts, heads of 64 channels, in bfloat16."""
    subject.model.config.head_dim = 64
    cache = cache_of(subject)
    for layer in range(2):
        cache.update(*(random(3, 2, tokens, 64).to(torch.bfloat16) for _ in range(2)), layer)
    return bytes_per_token(cache)


@pytest.mark.parametrize(("bits", "share"), [(8, 9 / 16), (4, 5 / 16), (2, 3 / 16)])
def test_memory_is_really_smaller(bits: int, share: float) -> None:
    """Of a whole number of groups of 32, heads of 64: codes, and 32 bits of scale and minimum for 32 numbers."""
    plain = tiny_subject("llama", "bfloat16")
    assert isinstance(cache_of(plain), DynamicCache)
    assert bytes_of(plain, 128) == 2 * 2 * 2 * 64 * 2
    small = KIVI(bits, 32).apply(tiny_subject("llama", "bfloat16"), CalibrationText.empty())
    assert bytes_of(small, 128) == share * 2 * 2 * 2 * 64 * 2


def test_what_stays_as_it_is_counts_in_full() -> None:
    """The paper's residual: of 300 tokens 5 groups of 32 are rounded to 4 bits, and 140 are not."""
    subject = KIVI(4, 32, 128).apply(tiny_subject("llama", "bfloat16"), CalibrationText.empty())
    plain = 2 * 2 * 2 * 64 * 2
    assert bytes_of(subject, 300) == pytest.approx(plain * (160 * 5 / 16 + 140) / 300)


@torch.inference_mode()
def generated_states(subject: Subject, token_ids: torch.Tensor) -> torch.Tensor:
    """Hidden states of one token after the other, through the cache."""
    cache, base = cache_of(subject), subject.model.base_model
    steps = token_ids.split(1, dim=1)
    return torch.cat([base(input_ids=step, past_key_values=cache).last_hidden_state for step in steps], 1)


@torch.inference_mode()
def scored_states(subject: Subject) -> torch.Tensor:
    return states_of(subject)(subject.model, input_ids=TOKEN_IDS, use_cache=False)


@pytest.mark.parametrize("residual", [0, 16])
@pytest.mark.parametrize("name", CAUSAL)
def test_text_is_scored_as_it_is_generated(name: str, residual: int) -> None:
    """A group at a time gives what a token at a time gives: each sees its own group exactly, those before rounded."""
    subject, forwards = cached(4, residual, name), []
    with subject.model.base_model.register_forward_pre_hook(lambda *_: forwards.append(1)):
        scored = scored_states(subject)
    assert len(forwards) == 6  # of 45 tokens
    exact, generated = scored_states(tiny_subject(name)), generated_states(subject, TOKEN_IDS)
    torch.testing.assert_close(scored, generated, rtol=0, atol=2e-3 * float(scored.abs().max()))
    seen_exactly = 8 + residual  # tokens
    assert torch.allclose(scored[:, :seen_exactly], exact[:, :seen_exactly], atol=1e-4)
    assert (scored[:, seen_exactly:] - exact[:, seen_exactly:]).norm() > 5 * (scored - generated).norm()


def test_text_scored_in_parts_that_are_no_groups_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug that the test above is there for: parts one token too long."""
    subject = cached(4, 16)
    generated = generated_states(subject, TOKEN_IDS)
    monkeypatch.setattr(QuantizedCache, "group", 9)
    scored = scored_states(subject)
    assert (scored - generated).abs().max() > 2e-3 * float(scored.abs().max())


def test_more_bits_are_nearer() -> None:
    exact = scored_states(tiny_subject("llama"))
    distances = [float((scored_states(cached(bits)) - exact).norm()) for bits in (8, 4, 2)]
    assert distances[0] < 0.2 * distances[1] < 0.2 * distances[2]
    assert 0 < distances[0] < 0.02 * float(exact.norm())


def test_a_longer_residual_is_nearer() -> None:
    exact = scored_states(tiny_subject("llama"))
    distances = [float((scored_states(cached(2, residual)) - exact).norm()) for residual in (0, 16, 32, 40)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] > 0
    assert distances[3] < 1e-3 * distances[0]  # of 45 tokens, none sees a rounded one


@torch.inference_mode()
def test_logits_are_the_heads_of_those_states() -> None:
    subject = cached(4, 8)
    expected = subject.model.lm_head(scored_states(subject))
    torch.testing.assert_close(logits_of(subject, TOKEN_IDS, cache_of(subject)), expected)
    plain = tiny_subject("llama")
    found = logits_of(plain, TOKEN_IDS, cache_of(plain))
    torch.testing.assert_close(found, plain.model(TOKEN_IDS, use_cache=False).logits)
