"""Every technique that compresses weights applies to a classifier, whose head and pooler stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from squeeze.artifacts import format as artifact
from squeeze.artifacts.build import resolve_step
from squeeze.core import paths
from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from tests.snippets import CHAINS, CLASSIFIERS_ONLY, labelled
from tests.techniques.test_contract import (
    BY_GRADIENT,
    DENSE,
    NAMES,
    NO_ENCODERS,
    RECOVERED,
    REFUSE,
    apply,
    cell_of,
    outputs,
)
from tests.tiny import tiny_subject

CLASSIFIER = "bert_classifier"
FAMILIES = ("baseline", "inference", "low_rank", "pruning", "quantization")  # not those of language models' trainings


def family(technique: str) -> str:
    return str(yaml.safe_load((paths.conf() / "technique" / f"{technique}.yaml").read_text())["family"])


UNTRAINED = sorted(name for name in NAMES if name not in NO_ENCODERS and family(name) in FAMILIES)
KEPT = ("bert.pooler.dense", "classifier")
TRAINERS = sorted(CLASSIFIERS_ONLY - CHAINS)
RECOVERING = sorted(name for name in RECOVERED if name.endswith("_recover"))


def trained(technique: str, dtype: str = "float32") -> Subject:
    """The tiny classifier after the steps of a technique that trains it."""
    subject = tiny_subject(CLASSIFIER, dtype)
    calibration = CalibrationText(
        torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)),
        load_baseline=lambda: tiny_subject(CLASSIFIER, dtype).model,
        labelled=labelled(subject),
    )
    for step in cell_of(technique).technique["steps"]:
        subject = resolve_step(step).apply(subject, calibration)
    return subject


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("technique", UNTRAINED)
def test_it_compresses_a_classifier_and_keeps_its_head(technique: str, dtype: str, tmp_path: Path) -> None:
    original, subject = tiny_subject(CLASSIFIER, dtype), apply(technique, tiny_subject(CLASSIFIER, dtype))
    for name in KEPT:
        before, after = original.model.get_submodule(name), subject.model.get_submodule(name)
        assert type(after) is torch.nn.Linear
        assert after.weight.is_floating_point()
        assert torch.allclose(after.weight.float(), before.weight.float(), atol=1e-2)
    artifact.save(subject, tmp_path)
    running = artifact.load(tmp_path)
    expected = outputs(subject)
    assert expected.shape == (2, 2)
    tolerance = (1e-4 if running.model.dtype == torch.float32 else 0.03) * float(expected.abs().max())
    assert torch.allclose(outputs(running), expected, atol=tolerance, rtol=0)
    assert technique in DENSE or not torch.equal(expected, outputs(original))


@pytest.mark.parametrize("technique", sorted(REFUSE - BY_GRADIENT))
def test_what_looks_at_predicted_tokens_refuses_a_classifier(technique: str) -> None:
    """Before any work where its first step does; steps before that one have done theirs."""
    subject = tiny_subject(CLASSIFIER)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    with pytest.raises(Unsupported, match="has no language-modelling head"):
        apply(technique, subject)
    assert all(torch.equal(subject.model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("technique", sorted(BY_GRADIENT))
def test_what_looks_at_the_loss_of_a_classifier_asks_for_classes(technique: str) -> None:
    subject = tiny_subject(CLASSIFIER)
    before = subject.model.num_parameters()
    with pytest.raises(Unsupported, match="this text has no classes; take by=wanda"):
        apply(technique, subject)
    assert subject.model.num_parameters() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("technique", TRAINERS)
def test_what_trains_a_classifier_is_saved_and_loaded(technique: str, dtype: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        artifact.save(trained(technique, dtype), tmp_path / folder)
    assert artifact.content_hash(tmp_path / "a") == artifact.content_hash(tmp_path / "b")
    subject, running = trained(technique, dtype), artifact.load(tmp_path / "a")
    assert torch.equal(outputs(running), outputs(subject))
    assert running.model.dtype == getattr(torch, dtype)
    assert not torch.equal(outputs(running), outputs(tiny_subject(CLASSIFIER, dtype)))
    assert running.claims["training_tokens"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("technique", RECOVERING)
def test_what_recovers_a_language_model_recovers_a_classifier(technique: str, dtype: str, tmp_path: Path) -> None:
    subject, original = trained(technique, dtype), tiny_subject(CLASSIFIER, dtype)
    artifact.save(subject, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path, prepare=False)), outputs(subject))
    for name in KEPT:
        before, after = original.model.get_submodule(name), subject.model.get_submodule(name)
        assert torch.equal(after.weight, before.weight)
    assert subject.claims["training_tokens"] > 0


@pytest.mark.parametrize("technique", TRAINERS)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_what_trains_a_classifier_refuses_other_models(technique: str, architecture: str) -> None:
    subject = tiny_subject(architecture)
    step = cell_of(technique).technique["steps"][-1]
    with pytest.raises(Unsupported, match="is no classifier, expected one, such as model=minilm_sst2"):
        resolve_step(step).apply(subject, CalibrationText.empty())


@pytest.mark.parametrize("technique", TRAINERS)
def test_it_asks_for_sentences_with_classes(technique: str) -> None:
    step = cell_of(technique).technique["steps"][-1]
    text = CalibrationText(torch.arange(64).reshape(2, 32))
    with pytest.raises(Unsupported, match="has no classes, expected labelled sentences; take calibration=snippets"):
        resolve_step(step).apply(tiny_subject(CLASSIFIER), text)


@pytest.mark.parametrize("technique", sorted(CHAINS))
def test_a_student_that_is_rounded_is_smaller_still_and_answers_as_before(technique: str, tmp_path: Path) -> None:
    subject, student = trained(technique), trained("distil_classifier")
    artifact.save(subject, tmp_path / "rounded")
    artifact.save(student, tmp_path / "student")
    positions = (
        student.model.bert.embeddings.position_embeddings.weight.nbytes
    )  # most of the tiny model, and not rounded
    sizes = [(tmp_path / name / artifact.WEIGHTS).stat().st_size - positions for name in ("rounded", "student")]
    assert sizes[0] < sizes[1] / 3
    expected = outputs(student)
    assert (outputs(artifact.load(tmp_path / "rounded")) - expected).abs().max() < 0.3 * expected.abs().max()
