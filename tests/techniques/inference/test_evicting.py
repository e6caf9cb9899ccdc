"""StreamingLLM, SnapKV and H2O: what they give a subject, and what they refuse. Their caches are tested elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.attended_cache import AttendedCache
from squeeze.layers.window_cache import WindowCache
from squeeze.models.subject import CacheFactory
from squeeze.request.expand import cells
from squeeze.runtimes.compiled import Compiled
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.h2o import HeavyHitters
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.inference.snapkv import SnapKV
from squeeze.techniques.inference.streaming import StreamingLLM
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

NO_TEXT = CalibrationText.empty()
CACHES: list[tuple[Any, CacheFactory]] = [
    (StreamingLLM(256), WindowCache(256, 4, 64)),
    (SnapKV(256), AttendedCache(256, 32, 64, voters=32, pooled=5, anew=True)),
    (HeavyHitters(256), AttendedCache(256, 96, 64, voters=64, pooled=1, anew=False)),
]


@pytest.mark.parametrize(("technique", "expected"), CACHES)
def test_the_cache_travels_with_the_subject_and_is_loaded_again(
    technique: Any, expected: CacheFactory, tmp_path: Path
) -> None:
    subject = technique.apply(tiny_subject("llama"), NO_TEXT)
    assert subject.cache == expected
    assert subject.claims["kv_cache"]["cache_tokens"] == 256
    subject = RoundToNearest(4, 32, True).apply(subject, NO_TEXT)
    expected(subject.model.config)  # and what that does to attention is no part of what is saved
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path)
    assert loaded.cache == expected
    assert loaded.model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="cannot be compiled; use runtime=eager"):
        Compiled("cpu", 1).engine(loaded)


@pytest.mark.parametrize("name", ["streaming", "snapkv", "h2o"])
def test_asked_for_by_name_the_room_is_an_axis(name: str) -> None:
    found = cells(["model=tiny_llama", f"technique={name}", "cache_tokens=128,256"])
    assert [cell.label for cell in found] == [f"tiny_llama-{name}-c128", f"tiny_llama-{name}-c256"]
    assert [cell.technique["steps"][0]["piece"] for cell in found] == [64, 64]


@pytest.mark.parametrize(
    ("technique", "reason"),
    [
        (StreamingLLM(100), "expected cache_tokens, 100, to be a multiple"),
        (StreamingLLM(100, piece=0), "forgets 0 tokens at a time"),
        (StreamingLLM(128, sinks=64), "keeps 64 tokens whatever comes .* expected cache_tokens, 128, to be above 128"),
        (StreamingLLM(128, sinks=-1), "no -1 sinks"),
        (SnapKV(64), "expected cache_tokens, 64, to be above 96"),
        (SnapKV(256, pooled=4), "over 4 neighbours; expected an odd number"),
        (SnapKV(256, window=65), "the last 65 of 64 tokens vote; expected 1 to 64"),
        (SnapKV(256, window=0), "the last 0 of 64"),
        (HeavyHitters(64), "expected cache_tokens, 64, to be above 64"),
        (HeavyHitters(256, recent_share=1.0), "a share of 1.0 for the newest; expected 0 to below 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(technique: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        technique.apply(tiny_subject("llama"), NO_TEXT)


@pytest.mark.parametrize("technique", [each for each, _ in CACHES])
def test_models_and_subjects_that_it_does_not_suit_are_refused(technique: Any) -> None:
    with pytest.raises(Unsupported, match="no language-modelling head"):
        technique.apply(tiny_subject("bert"), NO_TEXT)
    with pytest.raises(Unsupported, match="there is a QuantizedCache already; expected one step with a cache"):
        technique.apply(KIVI(8, 8).apply(tiny_subject("llama"), NO_TEXT), NO_TEXT)
    forgetful = tiny_subject("llama")
    forgetful.model.config.sliding_window = 8  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="forgets tokens by itself"):
        technique.apply(forgetful, NO_TEXT)
    strange = tiny_subject("llama")
    strange.model.config.model_type = "strange"  # type: ignore[union-attr,assignment]
    with pytest.raises(Unsupported, match="positions of LlamaForCausalLM are not known; expected llama"):
        technique.apply(strange, NO_TEXT)
