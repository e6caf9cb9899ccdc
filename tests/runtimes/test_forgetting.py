"""Caches that forget: text is scored, and continued, as attention that is written out has it, and within the budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache

from squeeze.core.errors import SqueezeError
from squeeze.models.subject import Subject
from squeeze.probes.teacher_forced import gaps
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.kv_cache import bytes_per_token, cache_of, logits_of, states_of, tokens_held
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.h2o import HeavyHitters
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.inference.snapkv import SnapKV
from squeeze.techniques.inference.streaming import StreamingLLM
from tests import evicted
from tests.tiny import CAUSAL, tiny_subject

TOKEN_IDS = torch.randint(256, (2, 45), generator=torch.Generator().manual_seed(0))
TECHNIQUES = {
    "streaming": lambda tokens: StreamingLLM(tokens, sinks=2, piece=4),
    "snapkv": lambda tokens: SnapKV(tokens, window=3, pooled=3, piece=4),
    "h2o": lambda tokens: HeavyHitters(tokens, piece=4),
}
WHOLE = 48  # tokens: more than there are


def cached(technique: str, tokens: int = 16, name: str = "llama") -> Subject:
    """A tiny model that forgets, of weights so large that attention is no plain mean."""
    subject = tiny_subject(name)
    for parameter_name, parameter in subject.model.named_parameters():
        if any(part in parameter_name for part in ("q_proj.weight", "k_proj.weight", "c_attn.weight", "query_key")):
            parameter.data *= 3
    return TECHNIQUES[technique](tokens).apply(subject, CalibrationText.empty())


@torch.inference_mode()
def scored(subject: Subject, token_ids: torch.Tensor = TOKEN_IDS) -> torch.Tensor:
    return states_of(subject)(subject.model, input_ids=token_ids, use_cache=False)


@torch.inference_mode()
def generated(subject: Subject) -> torch.Tensor:
    """Hidden states of one token after the other, through the cache."""
    cache, base = cache_of(subject), subject.model.base_model
    steps = TOKEN_IDS.split(1, dim=1)
    return torch.cat([base(input_ids=step, past_key_values=cache).last_hidden_state for step in steps], 1)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_each_token_sees_what_is_written_out(technique: str, name: str) -> None:
    subject = cached(technique, name=name)
    found, expected = scored(subject), evicted.states(subject, TOKEN_IDS)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(generated(subject), expected, rtol=0, atol=1e-4 * scale)
    whole = scored(cached(technique, WHOLE, name))
    torch.testing.assert_close(found[:, :16], whole[:, :16], rtol=0, atol=1e-5 * scale)
    assert (found[:, 16:] - whole[:, 16:]).abs().max() > 1e-3 * scale, "what was forgotten is missed"


@torch.inference_mode()
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_with_room_for_all_nothing_changes(technique: str, name: str) -> None:
    subject = cached(technique, WHOLE, name)
    logits = logits_of(subject, TOKEN_IDS, cache_of(subject))
    kept = DynamicCache(config=subject.model.config)
    parts = [subject.model(input_ids=part, past_key_values=kept).logits for part in TOKEN_IDS.split(4, dim=1)]
    assert torch.equal(logits, torch.cat(parts, dim=1))


@pytest.mark.parametrize(
    ("technique", "per_token"), [("streaming", 2 * 16 * 4), ("snapkv", 2 * 16 * 4 + 4), ("h2o", 2 * 16 * 4 + 4)]
)
@torch.inference_mode()
def test_bytes_are_those_of_the_tokens_that_are_held(technique: str, per_token: int) -> None:
    """Of 45 tokens 13 are held: 2 layers of 2 heads of 16 channels, keys and values, and a vote each where they count.

    Behind 44, where a piece has ended, SnapKV's votes are gone; one token later it has one for each token again.
    """
    subject = cached(technique)
    cache, held = cache_of(subject), []
    for part in TOKEN_IDS.split(4, dim=1):
        subject.model(input_ids=part, past_key_values=cache)
        held.append(cache.layers[0].keys.shape[-2])
    assert max(held) <= 16
    assert held[-2:] == [12, 13]
    assert bytes_per_token(cache) == 2 * 2 * 13 * per_token / 45


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_tokens_that_are_held_are_counted_and_those_of_other_caches_are_all(technique: str) -> None:
    """Of 45 tokens 13, of 11 all 11; and all 45 where room is for all, or where they are kept in few bits."""

    def held(subject: Subject, tokens: int = 45) -> int:
        generation = Eager("cpu", 1).engine(subject).begin(60)
        generation.prefill(TOKEN_IDS[:, :tokens])
        return tokens_held(generation, tokens)

    assert [held(cached(technique), tokens) for tokens in (45, 11)] == [13, 11]
    assert held(cached(technique, WHOLE)) == 45
    assert held(tiny_subject("llama")) == 45
    assert held(KIVI(4, 8, 0).apply(tiny_subject("llama"), CalibrationText.empty())) == 45


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_no_token_sees_what_comes_later(technique: str) -> None:
    subject, other = cached(technique), TOKEN_IDS.clone()
    other[:, 30:] = (other[:, 30:] + 1) % 256
    found, changed = scored(subject), scored(subject, other)
    assert torch.equal(found[:, :28], changed[:, :28])
    torch.testing.assert_close(found[:, :30], changed[:, :30], rtol=0, atol=1e-5)
    assert not torch.allclose(found[:, 30], changed[:, 30], atol=1e-3)


@pytest.mark.parametrize("prompt", [1, 7, 16, 21])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_what_is_decoded_is_what_the_scored_forward_chooses(technique: str, prompt: int) -> None:
    engine = Eager("cpu", 1).engine(cached(technique))
    generation = engine.begin(prompt + 20)
    generation.prefill(TOKEN_IDS[:, :prompt])
    for _ in range(19):
        generation.decode()
    for text, chosen in zip(TOKEN_IDS, generation.token_ids(), strict=True):
        assert max(gaps(engine, text[:prompt], chosen)) < 1e-3
    assert generation.bytes_per_token < 2 * 2 * 2 * 16 * 4, "less than of a cache that keeps all"


def test_a_prompt_that_sees_all_of_itself_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug that the test above is there for."""
    subject = cached("streaming")
    _let_all_be_read_at_once(monkeypatch)
    engine = Eager("cpu", 1).engine(subject)
    generation = engine.begin(60)
    generation.prefill(TOKEN_IDS[:, :44])
    for _ in range(15):
        generation.decode()
    found = [gaps(engine, text[:44], chosen) for text, chosen in zip(TOKEN_IDS, generation.token_ids(), strict=True)]
    assert max(max(each) for each in found) > 1e-3


def _let_all_be_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squeeze.runtimes.eager.prompt_group", lambda _: None)
    monkeypatch.setattr("squeeze.layers.cache_budget.Budget.check", lambda *_: None)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_more_than_a_piece_at_once_is_refused(technique: str) -> None:
    subject = cached(technique)
    with pytest.raises(SqueezeError, match="5 tokens at once behind 0, expected at most 4"):
        subject.model(input_ids=TOKEN_IDS[:, :5], past_key_values=cache_of(subject))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_more_room_is_nearer(technique: str) -> None:
    whole = scored(cached(technique, WHOLE))
    near: Callable[[int], float] = lambda tokens: float((scored(cached(technique, tokens)) - whole).norm())  # noqa: E731
    assert near(12) > near(28) > near(40) > 0
