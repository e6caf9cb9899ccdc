"""Neurons: the dead go first, what stays is what it was, and transformers alone loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.layout import Sizes, layout, sizes
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.importance import CRITERIA
from squeeze.techniques.pruning.neurons import Neurons, rounded
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.students import assert_near, loads_alone, outputs
from tests.tiny import ARCHITECTURES, CAUSAL, tiny_model, tiny_subject

TEXT = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))
BYTES_OF_TEXT = CalibrationText(torch.randint(97, 123, (4, 32), generator=torch.Generator().manual_seed(1)))
# An encoder without a head has no loss.
PAIRS = [(name, by) for name in ARCHITECTURES for by in CRITERIA if (name, by) != ("bert", "first_order")]


def kill(model: nn.Module, dead: list[list[int]]) -> None:
    """Let these neurons of each block neither read nor give anything."""
    where = layout(model)
    for block, places in zip(architecture.blocks(model), dead, strict=True):
        for name in where.up:
            architecture.weight(block.get_submodule(name))[places] = 0
        architecture.weight(block.get_submodule(where.down))[:, places] = 0


@pytest.mark.parametrize(("name", "by"), PAIRS)
def test_dead_neurons_go_first_and_without_a_trace(name: str, by: str) -> None:
    subject = tiny_subject(name)
    kill(subject.model, [[*range(place, 128, 4)] for place in (1, 2)])
    expected = outputs(subject.model)
    pruned = Neurons(0.75, by).apply(subject, TEXT)  # type: ignore[arg-type]
    assert_near(outputs(pruned.model), expected)
    assert pruned.claims == {"channels_kept": 0.75, "parameters": count_parameters(tiny_model(name))}
    further = Neurons(0.5, by).apply(pruned, TEXT)  # type: ignore[arg-type]
    assert further.claims["channels_kept"] == 0.375
    assert not torch.allclose(outputs(further.model), expected, atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_a_plain_model_of_just_as_many_weights_less(name: str, tmp_path: Path) -> None:
    dense = tiny_subject(name)
    artifact.save(dense, tmp_path / "dense")
    before = count_parameters(dense.model)
    subject = Neurons(0.5, "wanda").apply(tiny_subject(name), TEXT)
    model = loads_alone(subject, tmp_path / "pruned", name)
    assert sizes(model) == Sizes(layers=2, hidden=64, channels=64, attention=64)
    matrices, biases = (3, 0) if name == "llama" else (2, 1)
    removed = 2 * 64 * (matrices * 64 + biases)
    assert before - count_parameters(model) == removed
    stored = [(tmp_path / folder / artifact.WEIGHTS).stat().st_size for folder in ("dense", "pruned")]
    assert abs(stored[0] - stored[1] - 4 * removed) < 64  # shapes in the header


@pytest.mark.parametrize("name", CAUSAL)
def test_what_stays_depends_on_the_text_that_is_to_be_known(name: str) -> None:
    models = [Neurons(0.25, "first_order").apply(tiny_subject(name), text).model for text in (TEXT, BYTES_OF_TEXT)]
    assert not torch.equal(outputs(models[0]), outputs(models[1]))


def test_equal_texts_give_equal_models_whatever_their_dtype() -> None:
    for dtype in ("float32", "bfloat16"):
        models = [Neurons(0.5, "first_order").apply(tiny_subject("llama", dtype), TEXT).model for _ in range(2)]
        assert torch.equal(outputs(models[0]), outputs(models[1]))


@pytest.mark.parametrize(
    ("wanted", "multiple", "most", "expected"),
    [
        (96, 8, 128, 96),
        (101, 8, 128, 104),
        (99, 8, 128, 96),
        (3, 8, 128, 8),
        (126, 8, 127, 127),
        (5.4, 1, 9, 5),
        (83, 8, 84, 80),
        (84, 8, 84, 84),  # all stay, although they are no multiple
    ],
)
def test_numbers_are_rounded_to_multiples(wanted: float, multiple: int, most: int, expected: int) -> None:
    assert rounded(wanted, multiple, most) == expected


def test_all_may_stay() -> None:
    pruned = Neurons(1.0, "magnitude").apply(tiny_subject("llama"), CalibrationText.empty())
    assert torch.equal(outputs(pruned.model), outputs(tiny_model("llama")))
    assert pruned.claims == {"parameters": count_parameters(pruned.model)}


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (Neurons(0.0, "wanda"), r"neurons cannot keep a share of 0\.0; expected more than 0, at most 1"),
        (Neurons(1.5, "wanda"), r"neurons cannot keep a share of 1\.5"),
        (Neurons(0.5, "wanda", multiple=0), "multiple is 0, expected 1 to the 128 neurons"),
        (Neurons(0.5, "wanda", multiple=129), "multiple is 129, expected 1 to the 128 neurons"),
        (Neurons(0.5, "neither"), "no criterion 'neither'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(technique: Neurons, message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        technique.apply(subject, TEXT)
    assert torch.equal(outputs(subject.model), outputs(tiny_model("llama")))


def test_a_model_that_is_compressed_is_refused() -> None:
    subject = RoundToNearest(4, 32, symmetric=True).apply(tiny_subject("llama"), TEXT)
    with pytest.raises(Unsupported, match="cut before the step that compresses"):
        Neurons(0.5, "wanda").apply(subject, TEXT)
