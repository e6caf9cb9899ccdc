"""Classifiers are scored in batches as they would be one by one; what cannot be is read one by one."""

from __future__ import annotations

import pytest
import torch

from squeeze.models.subject import Subject
from squeeze.probes.classes import answers, class_logits, is_dependent
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.tiny import tiny_subject

CHANCE = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(256, (length,), generator=CHANCE).tolist() for length in (3, 17, 9, 30, 4, 12)]
NO_DATA = CalibrationText.empty()


def classifier(dtype: str = "float32", seed: int = 0) -> Subject:
    return tiny_subject("bert_classifier", dtype, seed)


@pytest.mark.parametrize("budget", [0, 20, 64, 10_000])
def test_answers_come_in_order_whatever_the_batches(budget: int) -> None:
    model = classifier().model
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=torch.tensor([text])).logits for text in TEXTS])
    found = answers(model, TEXTS, budget)
    assert found.dtype is torch.float32
    assert torch.allclose(found, alone, atol=1e-5)
    assert alone.std(dim=0).min() > 1e-3, "all texts have the same answer, whose order says nothing"


def test_padding_is_masked() -> None:
    model = classifier().model
    assert torch.allclose(class_logits(model, TEXTS[:1], 40), class_logits(model, TEXTS[:1]), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_depends_on_the_batch_is_told(dtype: str) -> None:
    assert not is_dependent(classifier(dtype).model)
    assert not is_dependent(RoundToNearest(4, 32, symmetric=True).apply(classifier(dtype), NO_DATA).model)
    assert is_dependent(TorchDynamic(per_channel=True, activation_bits=7).apply(classifier(dtype), NO_DATA).model)
