"""A compressed classifier is told the classes that the uncompressed one tells, and stays compressed as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import matrices
from squeeze.layers.lora import LoraLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.losses import Objective
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.recover import Recover
from squeeze.techniques.training.sentence_training import distilled_classes
from tests.snippets import TRAIN, labelled
from tests.tiny import tiny_model, tiny_subject

CLASSIFIER = "bert_classifier"
TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
STEPS, SENTENCES = 24, len(TRAIN)
COMPRESSORS = {
    "wanda": Wanda(0.5, None, sequential=True),
    "layer_drop": LayerDrop(0.5, "every_other"),
    "rtn": RoundToNearest(2, 32, symmetric=True),
}


def calibration(rows: Any) -> CalibrationText:
    return CalibrationText(TEXT, labelled=rows, load_baseline=lambda: tiny_model(CLASSIFIER))


def compressed(name: str) -> Subject:
    return COMPRESSORS[name].apply(tiny_subject(CLASSIFIER), CalibrationText(TEXT))


def technique(how: str = "full") -> Recover:
    adapter = {"rank": 4, "lora_alpha": 8, "learning_rate": 1e-3} if how == "lora" else {"learning_rate": 2e-4}
    return Recover(**{"how": how, "training_steps": STEPS, "windows": SENTENCES, **adapter})


def apart(subject: Subject) -> float:
    """How far the classes are from the uncompressed model's."""
    with torch.no_grad():
        return float(distilled_classes(subject.model, tiny_model(CLASSIFIER), Objective(), labelled(subject)))


@pytest.mark.parametrize(
    ("name", "how"),
    [("wanda", "full"), ("wanda", "lora"), ("layer_drop", "full"), ("layer_drop", "lora"), ("rtn", "lora")],
)
def test_it_comes_nearer_to_the_uncompressed_classifier(name: str, how: str) -> None:
    subject = compressed(name)
    before, rows = apart(subject), labelled(subject)
    recovered = technique(how).apply(subject, calibration(rows))
    assert apart(recovered) < 0.9 * before
    assert recovered.claims["training_tokens"] == STEPS * int(rows.attention_mask.sum())
    assert not any(parameter.requires_grad for parameter in recovered.model.parameters())


def test_zeros_stay_zeros_and_all_but_the_blocks_stays_as_it_was() -> None:
    subject = compressed("wanda")
    zeros = {path: layer.dequantize() == 0 for path, layer in matrices(subject.model)}
    recovered = technique().apply(subject, calibration(labelled(subject)))
    for path, layer in matrices(recovered.model):
        assert isinstance(layer, SparseLinear)
        assert torch.equal(layer.dequantize() == 0, zeros[path])
    assert recovered.claims["trainable_parameters"] == sum(int((~zero).sum()) for zero in zeros.values())
    assert torch.equal(recovered.model.classifier.weight, tiny_model(CLASSIFIER).classifier.weight)


def test_codes_stay_and_a_change_lies_beside_them() -> None:
    subject = compressed("rtn")
    before = {path: layer.dequantize() for path, layer in matrices(subject.model)}
    recovered = technique("lora").apply(subject, calibration(labelled(subject)))
    for path, layer in matrices(recovered.model):
        assert isinstance(layer, LoraLinear)
        assert torch.equal(layer.base.dequantize(), before[path])
        assert layer.lora_B.abs().max() > 0


def test_no_class_is_read() -> None:
    found = []
    for rows in (TRAIN, [(text, 1 - number) for text, number in TRAIN]):
        subject = compressed("layer_drop")
        found.append(technique().apply(subject, calibration(labelled(subject, rows))).model.state_dict())
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


def test_without_sentences_it_is_refused_before_any_work() -> None:
    subject = compressed("wanda")
    before = copy.copy(dict(subject.model.named_modules()))
    with pytest.raises(Unsupported, match="has no classes, expected labelled sentences; take calibration=snippets"):
        technique().apply(subject, CalibrationText(TEXT))
    assert dict(subject.model.named_modules()) == before
