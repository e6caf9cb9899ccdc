"""KIVI: what it gives a subject, and what it refuses. The cache itself is tested with the layers."""

from __future__ import annotations

import pytest

from squeeze.core.errors import Unsupported
from squeeze.layers.kv_cache import QuantizedCache
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.inference.streaming import StreamingLLM
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject


def cached(bits: int = 8, group_size: int = 8, residual: int = 0, name: str = "llama") -> Subject:
    return KIVI(bits, group_size, residual).apply(tiny_subject(name), CalibrationText.empty())


def test_the_cache_travels_with_the_subject() -> None:
    subject = cached(4, 8, 16)
    assert subject.cache == QuantizedCache(4, 8, 16)
    assert subject.claims["kv_cache"] == {"bits": 4, "group_size": 8, "residual": 16}
    assert RoundToNearest(4, 32, True).apply(subject, CalibrationText.empty()).cache == subject.cache
    assert tiny_subject("llama").cache is None


def test_a_step_of_an_old_record_keeps_no_residual() -> None:
    assert (
        cached().cache
        == QuantizedCache(8, 8, residual=0)
        == KIVI(8, 8).apply(tiny_subject("llama"), CalibrationText.empty()).cache
    )


def test_asked_for_by_name_it_is_the_papers() -> None:
    (cell,) = cells(["model=tiny_llama", "technique=kv_cache", "bits=2"])
    (step,) = cell.technique["steps"]
    assert (step["group_size"], step["residual"]) == (32, 128)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(Unsupported, match="no 3-bit codes"):
        cached(3)
    for group_size in (12, 0):
        with pytest.raises(Unsupported, match=f"groups of {group_size} tokens"):
            cached(4, group_size)
    for residual in (12, -8):
        with pytest.raises(Unsupported, match=f"groups of 8 tokens; expected residual, {residual}, to be a multiple"):
            cached(4, 8, residual)
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


def test_a_cache_that_a_step_has_given_is_not_taken_away() -> None:
    """Its claim would stay true of nothing: text would no longer be forgotten."""
    forgetful = StreamingLLM(256).apply(tiny_subject("llama"), CalibrationText.empty())
    with pytest.raises(Unsupported, match="kv_cache: there is a WindowCache already; expected one step with a cache"):
        KIVI(8, 8).apply(forgetful, CalibrationText.empty())
