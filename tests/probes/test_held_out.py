"""Held-out text is the end of the evaluation text, scored as the text itself is, where nothing of it is ranked by."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.probes import samples
from squeeze.probes.held_out import CHARACTERS, TOKENS, held_out_nll
from squeeze.runtimes.eager import Eager
from squeeze.sources import questions as data
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.scored import measure
from tests.tiny import tiny_subject

TEXT = "".join(f"{number}: the cat sat on a mat.\n" for number in range(2500))
SCORED = {"corpus": "wikipedia_eval", "tokens": 300, "window": 64, "stride": 64}
PROTOCOL = {"perplexity": SCORED, "tasks": []}


@pytest.fixture(autouse=True)
def long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.corpora, "text", lambda _: TEXT)


def test_it_is_the_end_of_the_text_by_the_models_own_losses() -> None:
    subject = tiny_subject("llama")
    found = held_out_nll(Eager("cpu", 1).engine(subject), {**SCORED, "window": 1500})
    assert found is not None
    start = TEXT.index("\n", len(TEXT) - CHARACTERS)
    ids = torch.tensor(subject.tokenizer.encode(TEXT[start:])[:TOKENS])
    expected = []
    for window in (ids[:1500], ids[1500:]):
        logits = subject.model(input_ids=window[None]).logits[0, :-1].log_softmax(-1)
        expected.append(-logits.gather(-1, window[1:, None])[:, 0])
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)


@pytest.mark.parametrize("tokens", [None, len(TEXT) // 5, 10**9])
def test_where_all_is_scored_nothing_is_held_out(tokens: int | None) -> None:
    assert held_out_nll(Eager("cpu", 1).engine(tiny_subject("llama")), {**SCORED, "tokens": tokens}) is None


@pytest.mark.parametrize("text", ["a short text.\n" * 800, "a line\n" * 9000 + "x" * CHARACTERS + "\nend.\n"])
def test_of_too_short_an_end_there_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(data.corpora, "text", lambda _: text)
    assert held_out_nll(Eager("cpu", 1).engine(tiny_subject("llama")), {**SCORED, "tokens": 2000}) is None


def test_a_baseline_and_what_is_better_than_it_are_scored_on_it(tmp_path: Path) -> None:
    subject = RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    artifact.save(tiny_subject("llama"), tmp_path / "artifact")
    baseline = measure(tiny_subject("llama"), tmp_path / "baseline", **PROTOCOL)
    losses = baseline.arrays["token_nll_held_out"]
    assert baseline.values["perplexity_held_out"] == pytest.approx(math.exp(losses.mean(dtype=np.float64)))
    found = measure(subject, tmp_path / "row", tmp_path / "baseline", **PROTOCOL)
    said = f'"perplexity": {baseline.values["perplexity"]}'
    for better in (False, True):
        folder = shutil.copytree(tmp_path / "baseline", tmp_path / f"baseline{better}")
        text = (folder / samples.JSON_NAME).read_text()
        other = found.values["perplexity"] * (2 if better else 0.5)
        (folder / samples.JSON_NAME).write_text(text.replace(said, f'"perplexity": {other}'))
        again = measure(subject, tmp_path / f"row{better}", folder, **PROTOCOL)
        assert ("perplexity_held_out" in again.values) == ("token_nll_held_out" in again.arrays) == better
