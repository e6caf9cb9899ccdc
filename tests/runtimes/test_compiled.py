"""Compiled: the decode step captured whole, on a cache of fixed shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.runtimes.compiled import Compiled
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from tests.tiny import tiny_subject

TOKEN_IDS = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How torch.compile was asked; what it is given runs as it is."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda forward, **how: calls.append(how) or forward)
    return calls


def test_the_decode_step_is_compiled_whole_once_for_all_generations(asked: list[dict[str, Any]]) -> None:
    engine = Compiled("cpu", 1).engine(tiny_subject("llama"))
    for _ in range(2):
        generation = engine.begin(20)
        generation.prefill(TOKEN_IDS)
        assert len(asked) == 1
        assert [layer.max_cache_len for layer in generation.cache.layers] == [20, 20]
        generation.decode()
    assert engine.log_probabilities(TOKEN_IDS).shape == (2, 11)
    assert asked == [{"fullgraph": True, "dynamic": False}]


def test_generations_do_not_share_their_cache(asked: list[dict[str, Any]]) -> None:
    engine = Compiled("cpu", 1).engine(tiny_subject("llama"))
    generations = [engine.begin(20) for _ in range(2)]
    for generation in generations:
        generation.prefill(TOKEN_IDS)
        generation.decode()
    assert generations[0].token_ids() == generations[1].token_ids()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_static_cache_gives_the_same_tokens(dtype: str, asked: list[dict[str, Any]]) -> None:
    found = []
    for runtime in (Compiled("cpu", 1), Eager("cpu", 1)):
        generation = runtime.engine(tiny_subject("llama", dtype)).begin(20)
        generation.prefill(TOKEN_IDS)
        found.append([generation.decode().tolist() for _ in range(8)])
    assert found[0] == found[1]


def test_a_cache_that_grows_is_refused() -> None:
    subject = KIVI(4, 8).apply(tiny_subject("llama"), CalibrationText.empty())
    with pytest.raises(Unsupported, match="use runtime=eager"):
        Compiled("cpu", 1).engine(subject)


def test_it_says_that_eager_scores_its_text() -> None:
    assert Compiled("cpu", 1).engine(tiny_subject("llama")).scored_as == "eager"
