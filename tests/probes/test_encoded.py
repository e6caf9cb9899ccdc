"""What was classified while the clock ran is what is scored, but for rounding, however the model is compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squeeze.layers.contract import prepare_layers
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import encoded
from squeeze.records import encoded as judged
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.kernels import KERNELS
from tests.probes.test_classes import classifier

NO_DATA = CalibrationText.empty()
ROUNDS, LENGTH, BATCHES = 2, 31, (1, 4)


class LeftOut(nn.Module):
    """Returns zeros where ``leaves_out`` says so of the shape of its inputs and the number of the call."""

    def __init__(self, layer: nn.Module, leaves_out: Callable[[torch.Size, int], bool]) -> None:
        super().__init__()
        self.layer, self.leaves_out, self.calls = layer, leaves_out, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.layer(inputs)
        return found * 0 if self.leaves_out(inputs.shape, self.calls) else found


def gap(subject: Subject) -> float:
    """Over rounds, as the benches take it: texts are timed without a mask."""
    engine, chance = Eager("cpu", 1).engine(subject), torch.Generator().manual_seed(1)
    rounds = []
    for number in range(ROUNDS):
        texts = {batch: torch.randint(256, (batch, LENGTH + 2 * (number % 2)), generator=chance) for batch in BATCHES}
        timed = {batch: engine.encode(text).tolist() for batch, text in texts.items()}
        apart = {str(batch): encoded.apart(engine, text, timed[batch]) for batch, text in texts.items()}
        rounds.append({"encode_apart": apart})
    found = judged.gap(rounds)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "technique", [None, RoundToNearest(2, 32, symmetric=False), *KERNELS], ids=lambda each: type(each).__name__
)
def test_honest_models_answer_alike(technique: Any, dtype: str) -> None:
    subject = classifier(dtype) if technique is None else technique.apply(classifier(dtype), NO_DATA)
    prepare_layers(subject.model)
    assert gap(subject) <= judged.allowed(isinstance(technique, TorchDynamic)) / 2


@pytest.mark.parametrize(
    "leaves_out",
    [
        lambda shape, _: shape[1] in (LENGTH, LENGTH + 2),
        lambda shape, _: shape[0] == 1 and shape[1] < LENGTH + 8,
        lambda _, calls: calls % 2 == 1,
    ],
    ids=["timed lengths", "short texts alone", "every second call"],
)
@pytest.mark.parametrize("place", ["0.attention.output.dense", "1.output.dense"])
def test_one_layer_left_out_where_the_clock_runs_is_found(
    place: str, leaves_out: Callable[[torch.Size, int], bool]
) -> None:
    subject, name = classifier(), f"bert.encoder.layer.{place}"
    architecture.replace(subject.model, name, LeftOut(subject.model.get_submodule(name), leaves_out))
    assert gap(subject) > 2 * judged.ROUNDED


def test_other_logits_are_as_far_off_as_they_are_large() -> None:
    engine, texts = Eager("cpu", 1).engine(classifier()), torch.arange(2 * LENGTH).view(2, LENGTH)
    own = engine.encode(texts)
    apart, size = encoded.apart(engine, texts, (3 * own + 7).tolist())
    assert apart == pytest.approx(4 * size, rel=1e-3)
    assert encoded.apart(engine, texts, [[float("nan")] * 2] * 2) == pytest.approx([size, size], rel=1e-3)


def test_a_model_without_numbers_has_no_gap() -> None:
    subject = classifier()
    subject.model.classifier.weight.fill_(torch.nan)  # type: ignore[union-attr,operator]
    engine, texts = Eager("cpu", 1).engine(subject), torch.arange(LENGTH)[None]
    assert encoded.apart(engine, texts, engine.encode(texts).tolist()) == [0.0, 0.0]
