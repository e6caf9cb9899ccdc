"""Eager: the model as it is, its cache growing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.cache_utils import StaticLayer

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError, Unsupported
from squeeze.layers.kv_cache import QuantizedKeysAndValues
from squeeze.models.architecture import last_hidden_state
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.inference.snapkv import SnapKV
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

EAGER = Eager("cpu", 1)
TOKEN_IDS = torch.randint(256, (2, 45), generator=torch.Generator().manual_seed(0))


def test_text_is_scored_by_one_plain_forward() -> None:
    assert EAGER.engine(tiny_subject("llama")).states is last_hidden_state


def test_its_bytes_are_those_of_packed_weights(tmp_path: Path) -> None:
    artifact.save(RoundToNearest(4, 32, True).apply(tiny_subject("llama"), CalibrationText.empty()), tmp_path)
    assert EAGER.load(tmp_path).bytes_held < 0.7 * EAGER.engine(tiny_subject("llama")).bytes_held


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        EAGER.load(tmp_path)


def test_generation_goes_through_the_cache_after_saving_and_loading(tmp_path: Path) -> None:
    artifact.save(KIVI(2, 8, 8).apply(tiny_subject("llama"), CalibrationText.empty()), tmp_path)
    generation = EAGER.load(tmp_path).begin(28)
    generation.prefill(TOKEN_IDS[:, :20])
    for _ in range(8):
        generation.decode()
    assert [layer.keys.shape[-2] for layer in generation.cache.layers] == [8 + 28 % 8] * 2
    assert all(isinstance(layer, QuantizedKeysAndValues) for layer in generation.cache.layers)


@torch.inference_mode()
def test_log_probabilities_are_those_of_generation_through_the_cache() -> None:
    """Each token's, from what the cache held when it came: found by one token after the other."""
    subject = KIVI(4, 8, 16).apply(tiny_subject("llama"), CalibrationText.empty())
    assert subject.cache is not None
    cache = subject.cache(subject.model.config)
    steps = [subject.model(input_ids=token, past_key_values=cache).logits for token in TOKEN_IDS.split(1, dim=1)]
    logits = torch.cat(steps, dim=1)[:, :-1].log_softmax(-1)
    expected = logits.gather(-1, TOKEN_IDS[:, 1:, None])[..., 0]
    found = EAGER.engine(subject).log_probabilities(TOKEN_IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    plain = EAGER.engine(tiny_subject("llama")).log_probabilities(TOKEN_IDS)
    assert (found - plain).abs().max() > 10 * (found - expected).abs().max()


@pytest.mark.parametrize("runtime", [Eager("cpu", 1, attention="sdpa"), Eager("cpu", 1, cache="static")])
def test_of_a_model_that_reads_pictures_neither_attention_nor_cache_is_chosen(runtime: Eager) -> None:
    with pytest.raises(Unsupported, match="as they come; use runtime=eager"):
        runtime.engine(tiny_subject("llava"))


def test_a_cache_that_asks_for_its_own_attention_has_that_alone() -> None:
    """It would take the place of what the row says."""
    asked = Eager("cpu", 1, attention="eager")
    with pytest.raises(Unsupported, match="by sdpa; use runtime=eager"):
        asked.engine(SnapKV(256).apply(tiny_subject("llama"), CalibrationText.empty()))
    other = asked.engine(KIVI(4, 8).apply(tiny_subject("llama"), CalibrationText.empty()))
    other.logits(TOKEN_IDS)
    assert other.subject.model.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_logits_go_through_a_cache_of_the_kind_that_generations_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a static cache that is wrong shows in them, before anything is timed."""
    static, grown = (Eager("cpu", 1, cache=kind).engine(tiny_subject("llama")) for kind in ("static", "dynamic"))
    expected = grown.logits(TOKEN_IDS)
    torch.testing.assert_close(static.logits(TOKEN_IDS), expected, rtol=0, atol=1e-5)
    true = StaticLayer.update
    monkeypatch.setattr(StaticLayer, "update", lambda *given, **named: [2 * each for each in true(*given, **named)])
    assert (static.logits(TOKEN_IDS) - expected).abs().max() > 0.01
    assert torch.equal(grown.logits(TOKEN_IDS), expected)
