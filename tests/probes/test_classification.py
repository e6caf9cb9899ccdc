"""Accuracy is what Hugging Face's evaluate says, item by item; distances are of the classes' probabilities."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.models.subject import Subject
from squeeze.probes import samples
from squeeze.probes.classes import class_logits
from squeeze.probes.classification import judged, measure_classification
from squeeze.probes.metrics.accuracy.accuracy import Accuracy
from squeeze.probes.samples import Samples
from squeeze.runtimes.eager import Eager
from squeeze.sources import classification
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.probes.test_classes import classifier

LATENCY = {"warmup_rounds": 0, "prefill_repeats": 1, "batch_sizes": [1]}
PROTOCOL = {"tasks": ["sst2"], "items": None, "token_budget": 256, "latency": LATENCY}
TEXTS = [f"{'very ' * (number % 5)}{word} film number {number}" for number in range(20) for word in ("good", "bad")]
LABELS = [number % 2 for number in range(len(TEXTS))]


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(classification.SETS, "sst2", lambda: (TEXTS, LABELS))


def measured(subject: Subject, folder: Path, baseline: Path | None = None, **changes: Any) -> Samples:
    found = Samples(folder)
    measure_classification(Eager("cpu", 1).engine(subject), {**PROTOCOL, **changes}, found, baseline)
    found.write()
    return samples.read(folder)


def test_evaluate_judges_each_item_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE"):
        monkeypatch.setattr(evaluate.config, name, tmp_path / name)
    before = list(sys.path)
    assert judged([1, 0, 1, 1], [1, 1, 1, 0]) == {"accuracy": 0.5, "correct": [True, False, True, False]}
    assert list(tmp_path.iterdir()) == [], "it has left something in the home"
    assert sys.path == before


def test_the_metric_is_evaluates_own() -> None:
    assert issubclass(Accuracy, evaluate.Metric)
    assert "compute" not in vars(Accuracy)
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        judged([1, 0], [1])


def test_accuracy_is_the_share_of_likeliest_classes_that_are_right(tmp_path: Path) -> None:
    subject = classifier()
    found = measured(subject, tmp_path)
    tokens = [subject.tokenizer(text)["input_ids"] for text in TEXTS]
    logits = torch.cat([class_logits(subject.model, [ids]) for ids in tokens])
    right = (logits.argmax(-1) == torch.tensor(LABELS)).numpy()
    assert found.values["acc_sst2"] == right.mean()
    assert np.array_equal(found.arrays["sst2_correct"], right)
    assert np.allclose(found.arrays["sst2_loglik"], logits.log_softmax(-1), atol=1e-5)
    assert np.allclose(np.exp(found.arrays["sst2_loglik"]).sum(axis=1), 1)
    assert (found.values["batch_dependent"], found.values["diverged"]) == (False, False)
    assert 0 < right.mean() < 1
    assert "kl_divergence" not in found.values


def test_a_compressed_model_is_held_against_its_baseline(tmp_path: Path) -> None:
    baseline = measured(classifier(), tmp_path / "baseline")
    rounded = RoundToNearest(2, 32, symmetric=True).apply(classifier(), CalibrationText.empty())
    found = measured(rounded, tmp_path / "rounded", tmp_path / "baseline")
    p, q = (torch.tensor(each.arrays["sst2_loglik"]) for each in (baseline, found))
    expected = (p.exp() * (p - q)).sum(dim=1)
    assert np.allclose(found.arrays["item_kl"], expected, atol=1e-6)
    assert found.values["kl_divergence"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found.values["kl_divergence"] > 1e-5
    assert np.array_equal(found.arrays["item_top1"], (p.argmax(1) == q.argmax(1)).numpy())
    itself = measured(classifier(), tmp_path / "itself", tmp_path / "baseline")
    assert (itself.values["kl_divergence"], itself.values["top1_agreement"]) == (0, 1)


def test_a_baseline_that_was_asked_other_texts_is_refused(tmp_path: Path) -> None:
    measured(classifier(), tmp_path / "baseline", items=10)
    with pytest.raises(IntegrityError, match="not the same texts"):
        measured(classifier(), tmp_path / "row", tmp_path / "baseline")


def test_more_classes_than_the_model_has_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(classification.SETS, "sst2", lambda: (TEXTS[:2], [0, 2]))
    with pytest.raises(SqueezeError, match="the model has 2 classes, sst2 has 3"):
        measured(classifier(), tmp_path)


def test_answers_that_are_no_numbers_make_a_diverged_row(tmp_path: Path) -> None:
    subject = classifier()
    subject.model.classifier.weight.fill_(torch.nan)  # type: ignore[union-attr,operator]
    found = measured(subject, tmp_path)
    assert found.values["diverged"] is True
    assert found.values["reason"] == "40 of 40 answers are no numbers"


def test_it_is_called_as_often_as_where_it_is_timed(tmp_path: Path) -> None:
    """Else a layer that is left out once the model is warm would be scored whole."""
    counts = {}
    for name, latency in (("cold", LATENCY), ("warm", {**LATENCY, "warmup_rounds": 2, "batch_sizes": [1, 8]})):
        calls: list[object] = []
        subject = classifier()
        subject.model.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        measured(subject, tmp_path / name, latency=latency)
        counts[name] = len(calls)
    assert counts["warm"] - counts["cold"] == 2 * (8 * 2 + 1) - 1
