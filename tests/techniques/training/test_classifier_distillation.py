"""The student hears its teacher and the classes, each as loudly as alpha says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification

from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Labelled, Technique
from squeeze.techniques.losses import Objective
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.classifier_distillation import DistilClassifier, taught
from squeeze.techniques.training.finetune_classifier import FinetuneClassifier
from squeeze.techniques.training.sentence_training import cross_entropy, logits
from tests.snippets import TRAIN, labelled
from tests.tiny import tiny_subject

NO_TEXT = torch.empty((0, 0), dtype=torch.int64)
CLASSIFIER = "bert_classifier"


@pytest.fixture(scope="module")
def teacher() -> Subject:
    """A tiny classifier that knows the sentences by heart."""
    subject = tiny_subject(CLASSIFIER)
    return FinetuneClassifier(40, 6, 3e-3).apply(subject, CalibrationText(NO_TEXT, labelled=labelled(subject)))


def student(teacher: Subject, rows: Any, **fields: Any) -> Subject:
    """Another tiny classifier, after distillation."""
    subject = tiny_subject(CLASSIFIER, seed=1)
    calibration = CalibrationText(NO_TEXT, labelled=rows, load_baseline=lambda: teacher.model)
    return DistilClassifier(**{"training_steps": 60, "windows": 6, "learning_rate": 3e-3, **fields}).apply(
        subject, calibration
    )


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 1.0), (4.0, 0.3), (2.0, 0.0)])
def test_the_loss_is_hintons(temperature: float, alpha: float) -> None:
    own, other = tiny_subject(CLASSIFIER), tiny_subject(CLASSIFIER, seed=1)
    rows = labelled(own)
    with torch.no_grad():
        q, p = ((logits(model, rows) / temperature).softmax(-1) for model in (own.model, other.model))
        apart = (p * (p / q).log()).sum(-1).mean()
        expected = alpha * temperature**2 * apart + (1 - alpha) * F.cross_entropy(logits(own.model, rows), rows.labels)
        found = taught(own.model, other.model, Objective("forward", temperature, alpha), 0.0, rows)
    assert torch.allclose(found, expected, atol=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    own, other = (tiny_subject(CLASSIFIER, seed=seed).model.requires_grad_(True) for seed in (0, 1))
    taught(own, other, Objective("forward", 2.0, 0.5), 1.0, labelled(tiny_subject(CLASSIFIER))).backward()
    assert own.classifier.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in other.parameters())


def test_it_learns_from_the_teacher_alone(teacher: Subject) -> None:
    """With alpha 1 wrong classes do no harm: the teacher knows better."""
    rows = labelled(teacher, [(text, 1 - number) for text, number in TRAIN])
    found = student(teacher, rows, alpha=1.0)
    with torch.no_grad():
        assert (logits(found.model, rows).argmax(-1) == logits(teacher.model, rows).argmax(-1)).all()
        assert cross_entropy(found.model, rows) > 1


def test_with_alpha_0_it_learns_the_classes_alone(teacher: Subject) -> None:
    rows = labelled(teacher, [(text, 1 - number) for text, number in TRAIN])
    found = student(teacher, rows, alpha=0.0)
    with torch.no_grad():
        assert (logits(found.model, rows).argmax(-1) == rows.labels).all()


def test_without_a_teacher_nobody_loads_one() -> None:
    rows = labelled(tiny_subject(CLASSIFIER))
    made = DistilClassifier(2, 6, 1e-3, alpha=0.0)
    made.apply(tiny_subject(CLASSIFIER), CalibrationText(NO_TEXT, labelled=rows))


def test_hidden_states_are_compared_of_tokens_alone() -> None:
    """What stands at the padding's place is nobody's business; what stands at a token's is."""
    own, other = tiny_subject(CLASSIFIER), tiny_subject(CLASSIFIER, seed=1)
    rows = labelled(own)
    padded, changed = rows.input_ids.clone(), rows.input_ids.clone()
    padded[rows.attention_mask == 0] = 65
    changed[0, 1] = 65

    def apart(ids: torch.Tensor) -> torch.Tensor:
        given = Labelled(ids, rows.attention_mask, rows.labels)
        with torch.no_grad():
            both, without = (taught(own.model, other.model, Objective(), weight, given) for weight in (2.0, 0.0))
        return both - without

    assert apart(rows.input_ids) > 0.1
    assert torch.allclose(apart(padded), apart(rows.input_ids), atol=1e-5)
    assert not torch.allclose(apart(changed), apart(rows.input_ids), atol=1e-5)
    with torch.no_grad():
        assert taught(own.model, own.model, Objective(), 2.0, rows).abs() < 1e-6


def test_hidden_states_of_another_width_are_refused(teacher: Subject) -> None:
    config = teacher.model.config.to_dict()
    narrow = BertForSequenceClassification(BertConfig(**{**config, "hidden_size": 32})).eval()
    calibration = CalibrationText(NO_TEXT, labelled=labelled(teacher), load_baseline=lambda: narrow)
    with pytest.raises(Unsupported, match="hidden states are 64 wide, the teacher's 32; use match: none"):
        DistilClassifier(1, 6, 1e-3, match="hidden").apply(tiny_subject(CLASSIFIER), calibration)


def test_the_teacher_is_left_as_it_was(teacher: Subject) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    student(teacher, labelled(teacher), training_steps=2)
    assert all(torch.equal(teacher.model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0, expected a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"alpha": 1.5}, "alpha is 1.5, expected a number from 0 to 1"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"match": "attention"}, "no matching of 'attention'; expected one of none, hidden"),
        ({"divergence": "sideways"}, "no divergence 'sideways'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(teacher: Subject, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        student(teacher, None, **fields)


@pytest.mark.parametrize("trainer", [DistilClassifier(1, 6, 1e-3), FinetuneClassifier(1, 6, 1e-3)])
@pytest.mark.parametrize("step", [RoundToNearest(4, 32, symmetric=True), Wanda(0.5, None, sequential=True)])
def test_what_is_compressed_is_refused_and_left_as_it_was(step: Technique, trainer: Technique) -> None:
    """Trained as dense layers its zeros and grids would go, and the claims of them stay."""
    subject = tiny_subject(CLASSIFIER)
    text = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
    calibration = CalibrationText(text, labelled=labelled(subject), load_baseline=lambda: pytest.fail("it was loaded"))
    model = step.apply(subject, calibration).model
    modules, tensors = dict(model.named_modules()), {key: each.clone() for key, each in model.state_dict().items()}
    with pytest.raises(Unsupported, match=r"trains plain layers, found 12 that are packed \(.*\); follow with recover"):
        trainer.apply(subject, calibration)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(each, tensors[key]) for key, each in model.state_dict().items())
