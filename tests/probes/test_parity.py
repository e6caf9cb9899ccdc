"""Parity: what a wrong export would do is found, what rounding does is not taken for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError
from squeeze.models.subject import Subject
from squeeze.probes import parity
from squeeze.probes.parity import NEARLY, Parity, between, compared
from squeeze.runtimes.compiled import Compiled
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.engines import opaque
from tests.tiny import tiny_subject

RUNTIME = {"name": "other", "device": "cpu", "threads": 1}
TOKENS = torch.randint(0, 256, (parity.POSITIONS + 1,), generator=torch.Generator().manual_seed(0))


def found(subject: Subject, engine: Any, folder: Path) -> Parity:
    """An engine beside the artifact that was saved of a subject."""
    artifact.save(subject, folder)
    return compared(engine, folder, RUNTIME, TOKENS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_that_computes_the_same_is_at_parity(dtype: str, tmp_path: Path) -> None:
    same = found(tiny_subject("llama", dtype), opaque(tiny_subject("llama", dtype)), tmp_path)
    assert same.near == 1
    assert same.equal >= (1 if dtype == "float32" else 0.9)
    assert same.difference < (1e-4 if dtype == "float32" else 0.1)
    assert 0 <= same.kl + 1e-7 < 1e-3
    same.check("runtime=other")
    assert same.figures().keys() == {"greedy_agreement", "greedy_within_rounding", "parity_difference", "parity_kl"}


def head_turned_by_one(subject: Subject) -> Subject:
    head: Any = subject.model.get_output_embeddings()  # type: ignore[operator]
    head.weight.copy_(head.weight.roll(1, 0))
    return subject


def embedding_turned_round(subject: Subject) -> Subject:
    embedding: Any = subject.model.get_input_embeddings()  # type: ignore[operator]
    embedding.weight.copy_(embedding.weight.flip(0))
    return subject


def without_a_part_of_a_block(subject: Subject) -> Subject:
    layer: Any = subject.model.model.layers[1].mlp.down_proj  # type: ignore[union-attr,index]
    layer.weight.zero_()
    return subject


MISTAKES = [head_turned_by_one, embedding_turned_round, without_a_part_of_a_block]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.__name__)
def test_a_wrong_export_is_invalid(mistake: Any, tmp_path: Path) -> None:
    wrong = found(tiny_subject("llama"), opaque(mistake(tiny_subject("llama"))), tmp_path)
    assert wrong.owed
    assert wrong.near < 0.97
    with pytest.raises(IntegrityError, match=r"runtime=other chooses other tokens .* of 512 positions"):
        wrong.check("runtime=other")


def test_of_codes_and_of_what_quantizes_further_the_difference_is_shown_and_nothing_is_owed(tmp_path: Path) -> None:
    rounded = RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    for folder, subject, engine in (
        ("codes", rounded, opaque(tiny_subject("llama"))),
        ("further", tiny_subject("llama"), opaque(rounded, exact=False)),
    ):
        told = found(subject, engine, tmp_path / folder)
        assert not told.owed
        assert told.equal < 0.99
        assert told.kl > 1e-3
        told.check("runtime=other")


def test_where_two_tokens_are_nearly_as_likely_either_will_do() -> None:
    expected = torch.tensor([[2.0, 1.95, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    chosen = torch.tensor([[1.95, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    told = between(expected, chosen, torch.tensor([0, 0, 2, 2]), NEARLY["bfloat16"], owed=True)
    assert (told.equal, told.near) == (0.5, 0.75)
    assert told.difference == pytest.approx(1.0)
    assert between(expected, chosen, torch.tensor([0, 0, 2, 2]), NEARLY["float32"], owed=True).near == 0.5


def test_kl_is_from_the_eager_model_to_the_engine() -> None:
    expected, engine = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    told = between(expected, engine, torch.tensor([0]), 0.01, owed=True)
    assert told.kl == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-6)


def test_what_is_no_number_is_never_at_parity(tmp_path: Path) -> None:
    def lost(logits: Tensor) -> Tensor:
        return torch.full_like(logits, math.nan)

    told = found(tiny_subject("llama"), opaque(tiny_subject("llama"), lost), tmp_path)
    assert (told.equal, told.near) == (0, 0)
    assert told.figures()["parity_kl"] is told.figures()["parity_difference"] is None
    with pytest.raises(IntegrityError, match=r"100\.0% of 512"):
        told.check("runtime=other")
    with pytest.raises(IntegrityError, match="beyond rounding"):
        replace(told, near=math.nan).check("runtime=other")


def test_another_vocabulary_is_said_with_both_sizes(tmp_path: Path) -> None:
    narrower = opaque(tiny_subject("llama"), lambda logits: logits[..., :-1])
    with pytest.raises(IntegrityError, match=r"259 tokens at 512 positions, expected 260 at 512"):
        found(tiny_subject("llama"), narrower, tmp_path)


def test_the_compiled_step_is_held_against_the_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decode step with its static cache, uncompiled here; then that of another model in its place."""
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    artifact.save(tiny_subject("llama"), tmp_path)
    few = TOKENS[:41]
    assert compared(Compiled("cpu", 1).load(tmp_path), tmp_path, RUNTIME, few).difference < 1e-4
    other = tiny_subject("llama", seed=1).model
    monkeypatch.setattr(torch, "compile", lambda *_, **__: other)
    told = compared(Compiled("cpu", 1).load(tmp_path), tmp_path, RUNTIME, few)
    assert told.difference > 0.1
    with pytest.raises(IntegrityError):
        told.check("runtime=compile")


def test_the_eager_models_own_head_is_applied_in_float32(tmp_path: Path) -> None:
    """Logits in bfloat16 would make many tokens equally likely."""
    artifact.save(tiny_subject("llama", "bfloat16"), tmp_path)
    wide = parity.eager_logits(tmp_path, RUNTIME, TOKENS[None, :64])
    narrow = Eager("cpu", 1).load(tmp_path).logits(TOKENS[None, :64])[0]
    assert wide.dtype == torch.float32
    assert torch.equal(narrow, narrow.bfloat16().float())
    assert not torch.equal(wide, wide.bfloat16().float())
    torch.testing.assert_close(wide, narrow, rtol=0.02, atol=0.05)
