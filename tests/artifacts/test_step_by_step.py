"""What each step did to the quality: it is read, and what is read stays as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from squeeze.artifacts import build as building
from squeeze.artifacts import format as artifact
from squeeze.artifacts import step_by_step
from squeeze.artifacts.step_by_step import accuracy, parted, perplexity, qualities
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.memory import measured
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Point
from squeeze.techniques.quantization.bitsandbytes import Float4
from squeeze.techniques.training.sentence_training import logits
from tests.artifacts.test_build import cell, info
from tests.snippets import TRAIN, labelled
from tests.tiny import tiny_subject

WINDOWS = torch.randint(256, (3, 32), generator=torch.Generator().manual_seed(0))


def in_nf4() -> Subject:
    return Float4("nf4", False).apply(tiny_subject("llama", "bfloat16"), CalibrationText.empty())


def test_perplexity_is_that_of_the_windows() -> None:
    model = tiny_subject("llama").model
    with torch.no_grad():
        logits = model(WINDOWS).logits[:, :-1]
    loss = float(F.cross_entropy(logits.flatten(0, 1), WINDOWS[:, 1:].flatten()))
    assert perplexity(model, WINDOWS) == pytest.approx(math.exp(loss), rel=1e-4)


def test_accuracy_is_the_share_of_sentences_whose_class_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_by_step, "AT_ONCE", 5)
    subject = tiny_subject("bert_classifier")
    rows = labelled(subject)
    with torch.no_grad():
        told = logits(subject.model, rows).argmax(-1)
    told[:3] = 1 - told[:3]
    assert accuracy(subject.model, replace(rows, labels=told)) == (len(TRAIN) - 3) / len(TRAIN)
    subject.model.classifier.bias.fill_(torch.nan)
    assert accuracy(subject.model, rows) == 0


def test_qualities_are_named_by_the_steps_before_them() -> None:
    assert qualities("perplexity_held_out", ["a.A"], [10.0, 12.5]) == [
        {"step": "none", "perplexity_held_out": 10.0},
        {"step": "a.A", "perplexity_held_out": 12.5},
    ]
    with pytest.raises(ValueError, match="shorter"):
        qualities("perplexity_held_out", ["a.A"], [10.0])


def test_reading_a_packed_model_changes_nothing_of_it(tmp_path: Path) -> None:
    """Where the processor multiplies in bfloat16, bitsandbytes packs anew what runs: later steps would miss it."""
    subject = in_nf4()
    artifact.save(in_nf4(), tmp_path / "unread")
    perplexity(subject.model, WINDOWS)
    inputs = torch.zeros(1, 4, subject.model.config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    layer = next(iter(architecture.block_linears(subject.model).values()))
    layer.train()
    layer(inputs).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().max() > 0
    layer.eval()
    artifact.save(subject, tmp_path / "read")
    weights = [tmp_path / name / "model.safetensors" for name in ("unread", "read")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_a_training_looks_at_is_not_what_steps_are_judged_by() -> None:
    for count, halves in ((8, (4, 4)), (3, (1, 2)), (1, (0, 1)), (0, (0, 0))):
        rows = torch.arange(count)[:, None]
        looked_at, unseen = parted(rows)
        assert (len(looked_at), len(unseen)) == halves
        assert torch.equal(torch.cat([looked_at, unseen]), rows)


class Claiming:
    """A step that trains nothing, and claims what it is told."""

    def __init__(self, claims: dict[str, Any], trains: bool) -> None:
        self.claims, self.trains = claims, trains

    def apply(self, subject: Subject, calibration: CalibrationText) -> Subject:
        if self.trains:
            calibration.workplace.ended([Point(1, 2.0)], 1.0, None)
        return subject.claiming(**self.claims)


def test_what_was_claimed_of_one_training_is_not_told_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "resolve_step", lambda step: Claiming(step["claims"], step["trains"]))
    adapted = {"training_tokens": 64, "trainable_parameters": 9, "trainable_share": 0.01}
    recovered = {"training_tokens": 32, "trainable_parameters": 70}
    steps = [
        {"claims": adapted, "trains": True},
        {"claims": recovered, "trains": True},
        {"claims": {"bits": 4}, "trains": False},
    ]
    building.build(cell(*steps), tmp_path, measured)
    told = [[each[name] for name in ("tokens", "parameters", "share")] for each in info(tmp_path)["training"]]
    assert told == [[64, 9, 0.01], [32, 70, None]]
    assert info(tmp_path)["claims"] == {**recovered, "bits": 4}, "of the last that trained"
