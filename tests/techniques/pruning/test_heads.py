"""Heads: the dead go first, in whole groups, in every architecture; who can load what is left is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.layout import group_size, layout, sizes
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.heads import Heads
from squeeze.techniques.pruning.importance import CRITERIA
from squeeze.techniques.pruning.neurons import Neurons
from tests.students import assert_near, loads_alone, outputs, subject_of
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TEXT = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))
# An encoder without a head has no loss.
PAIRS = [(name, by) for name in ARCHITECTURES for by in CRITERIA if (name, by) != ("bert", "first_order")]


def deaden(model: nn.Module, groups: list[list[int]]) -> None:
    """Let these groups of heads of each block give nothing, and the layer that reads them be otherwise loud."""
    where, width = layout(model), group_size(model)
    for block, places in zip(architecture.blocks(model), groups, strict=True):
        weight = architecture.weight(block.get_submodule(where.output))
        weight *= 10
        for place in places:
            weight[:, place * width : (place + 1) * width] = 0


@pytest.mark.parametrize(("name", "by"), PAIRS)
def test_dead_heads_go_first_and_without_a_trace(name: str, by: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    deaden(subject.model, [[0], [1]] if name == "llama" else [[0, 3], [1, 2]])
    expected = outputs(subject.model)
    pruned = Heads(0.5, by).apply(subject, TEXT)  # type: ignore[arg-type]
    assert_near(outputs(pruned.model), expected)
    alone = {} if name == "llama" else {"loads_with": "squeeze"}
    assert pruned.claims == {"heads_kept": 0.5, "parameters": count_parameters(tiny_model(name)), **alone}
    if alone:
        artifact.save(pruned, tmp_path)
        assert torch.equal(outputs(artifact.load(tmp_path).model), outputs(pruned.model))
    else:
        assert sizes(loads_alone(pruned, tmp_path, name)).attention == 32


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_just_as_many_weights_go_as_heads_have(name: str) -> None:
    pruned = Heads(0.5, "wanda").apply(tiny_subject(name), TEXT).model
    made, biases = (64 + 2 * 32, 0) if name == "llama" else (3 * 64, 3 * 64)
    assert count_parameters(tiny_model(name)) - count_parameters(pruned) == 2 * (made * 64 + 64 * 64 + biases) // 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_cut_again_and_before_and_after_neurons(name: str, tmp_path: Path) -> None:
    subject = subject_of(name, **({"num_key_value_heads": 4} if name == "llama" else {}))
    for step in (Heads(0.5, "wanda"), Neurons(0.5, "wanda"), Heads(0.5, "magnitude")):
        subject = step.apply(subject, TEXT)
    assert (subject.claims["heads_kept"], subject.claims["channels_kept"]) == (0.25, 0.5)
    artifact.save(subject, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path).model), outputs(subject.model))


def test_heads_that_do_not_divide_the_hidden_size_load_with_squeeze(tmp_path: Path) -> None:
    subject = Heads(0.75, "wanda").apply(subject_of("llama", num_key_value_heads=4), TEXT)
    assert subject.claims["loads_with"] == "squeeze"
    assert subject.claims["heads_kept"] == 0.75
    artifact.save(subject, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path).model), outputs(subject.model))


def test_what_a_configuration_describes_again_loads_without_squeeze_again(tmp_path: Path) -> None:
    subject = Heads(0.75, "wanda").apply(subject_of("llama", num_key_value_heads=4), TEXT)  # 3 of 4, for 64 channels
    subject = Heads(0.7, "wanda").apply(subject, TEXT)  # 2 of those 3
    assert "loads_with" not in subject.claims
    assert subject.claims["heads_kept"] == pytest.approx(0.5)
    assert sizes(loads_alone(subject, tmp_path, "llama")).attention == 32


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (Heads(0.0, "wanda"), r"heads cannot keep a share of 0\.0; expected more than 0, at most 1"),
        (Heads(1.1, "wanda"), r"heads cannot keep a share of 1\.1"),
        (Heads(0.5, "neither"), "no criterion 'neither'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(technique: Heads, message: str) -> None:
    subject = tiny_subject("gpt2")
    with pytest.raises(Unsupported, match=message):
        technique.apply(subject, TEXT)
    assert torch.equal(outputs(subject.model), outputs(tiny_model("gpt2")))
