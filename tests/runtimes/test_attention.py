"""Attention in other ways gives the same text; what a machine or a model does not have is refused, and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.request.expand import cells
from squeeze.runtimes import attention, contract
from squeeze.runtimes.attention import use_attention
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from tests.tiny import CAUSAL, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (2, 18), generator=torch.Generator().manual_seed(0))
ASKED = ["model=tiny_llama", "technique=none", "device=cpu", "threads=1"]


def generated(runtime: Eager, name: str = "llama") -> list[list[int]]:
    generation = runtime.engine(tiny_subject(name)).begin(20)
    generation.prefill(TOKEN_IDS[:, :12])
    for _ in range(8):
        generation.decode()
    return generation.token_ids()


def asked(*overrides: str) -> Any:
    (cell,) = cells([*ASKED, *overrides])
    return contract.of(cell.runtime)


@pytest.mark.parametrize("name", CAUSAL)
def test_attention_that_is_written_out_gives_the_same_tokens(name: str) -> None:
    assert generated(Eager("cpu", 1, attention="eager"), name) == generated(Eager("cpu", 1), name)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_model_is_told_which_it_is(implementation: Any) -> None:
    engine = Eager("cpu", 1, attention=implementation).engine(tiny_subject("llama"))
    assert engine.subject.model.config._attn_implementation == implementation  # type: ignore[union-attr]
    expected = Eager("cpu", 1).engine(tiny_subject("llama")).log_probabilities(TOKEN_IDS)
    torch.testing.assert_close(engine.log_probabilities(TOKEN_IDS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "device", "dtype", "reason"),
    [
        ("flash", "cpu", "bfloat16", "no attention 'flash'; expected one of eager, sdpa, flash_attention_2"),
        ("flash_attention_2", "cpu", "bfloat16", "flash_attention_2 runs on CUDA, here on cpu; use eager or sdpa"),
        ("flex_attention", "cpu", "bfloat16", "flex_attention runs on CUDA, here on cpu"),
        ("flash_attention_2", "cuda", "float32", "computes in bfloat16 or float16, not in float32"),
        ("flash_attention_2", "cuda:1", "bfloat16", "needs the package flash-attn, which is not installed"),
    ],
)
def test_what_cannot_run_is_refused(
    implementation: str, device: str, dtype: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    model = tiny_model("llama", dtype)
    before = model.config._attn_implementation  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match=reason):
        use_attention(model, implementation, device)
    assert model.config._attn_implementation == before  # type: ignore[union-attr]


def test_a_static_cache_gives_the_same_tokens() -> None:
    assert generated(Eager("cpu", 1, cache="static")) == generated(Eager("cpu", 1))


def test_a_static_cache_has_room_for_what_is_asked_and_none_of_it_grows() -> None:
    generation = Eager("cpu", 1, cache="static").engine(tiny_subject("llama")).begin(20)
    assert isinstance(generation.cache, StaticCache)
    generation.prefill(TOKEN_IDS[:, :12])
    kept = [layer.keys.data_ptr() for layer in generation.cache.layers]
    generation.decode()
    assert [layer.keys.shape[-2] for layer in generation.cache.layers] == [20, 20]
    assert [layer.keys.data_ptr() for layer in generation.cache.layers] == kept
    assert generation.bytes_per_token == 2 * 2 * 2 * 16 * 4 * 20 / 13  # the room that is empty is held, too


def test_a_cache_of_its_own_is_not_static() -> None:
    subject = KIVI(4, 8).apply(tiny_subject("llama"), CalibrationText.empty())
    with pytest.raises(Unsupported, match="a cache of its own, which is not static"):
        Eager("cpu", 1, cache="static").engine(subject)


def test_each_is_asked_for_as_a_runtime() -> None:
    assert asked("runtime=eager") == Eager("cpu", 1)
    assert asked("runtime=attention") == Eager("cpu", 1, attention="eager")
    assert asked("runtime=attention", "runtime.attention=flash_attention_2").attention == "flash_attention_2"
    assert asked("runtime=static_cache") == Eager("cpu", 1, cache="static")
    assert len(cells([*ASKED, "runtime=attention", "runtime.attention=eager,sdpa"])) == 2
    with pytest.raises(SqueezeError, match=r"runtime\.attention: 'fast' is not allowed; expected one of eager, sdpa"):
        asked("runtime=attention", "runtime.attention=fast")
