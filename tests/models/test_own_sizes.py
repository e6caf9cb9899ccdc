"""Sizes that no configuration says: an artifact states them, and loads; what is not so is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
from squeeze.core.errors import IntegrityError, Unsupported
from squeeze.models import architecture, own_sizes
from squeeze.models.folding import folds
from squeeze.models.layout import layout
from squeeze.models.surgery import cut_channels, cut_heads, keep_blocks, keep_channels, set_weight
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.students import assert_near, outputs
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

LAYER = "model.layers.1.mlp.up_proj"
SIZES = {"out_features": 32, "in_features": 64, "bias": 0}


def cut(model: nn.Module) -> None:
    """Let blocks differ in both, and one output of attention have a bias."""
    cut_channels(model, [range(32), range(0, 128, 2)])
    cut_heads(model, [[1], [0]])
    reader = architecture.blocks(model)[0].get_submodule(layout(model).output)
    set_weight(reader, architecture.weight(reader), torch.arange(64.0) / 64)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_a_model_that_its_configuration_describes_nothing_is_stated(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    keep_blocks(subject.model, [1])
    keep_channels(subject.model, [range(32)])
    assert own_sizes.stated(subject.model) == {}
    assert own_sizes.claims(subject.model) == {}
    subject = RoundToNearest(4, 32, symmetric=True, embed_bits=8).apply(subject, CalibrationText.empty())
    artifact.save(subject, tmp_path)
    assert "own_sizes" not in artifact.describe(tmp_path)  # such artifacts are, byte for byte, those of before


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_of_sizes_of_its_own_is_loaded(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    cut(subject.model)
    expected = outputs(subject.model)
    artifact.save(subject, tmp_path)
    model = artifact.load(tmp_path).model
    assert torch.equal(outputs(model), expected)
    assert {name: each.shape for name, each in model.named_parameters()} == {
        name: each.shape for name, each in subject.model.named_parameters()
    }
    assert own_sizes.claims(model) == {"loads_with": "squeeze"}


def test_what_is_stated_is_what_the_configuration_does_not_say() -> None:
    model = tiny_model("opt")
    cut_channels(model, [range(128), range(40)])
    cut_heads(model, [[0, 1, 2], [0, 1, 2, 3]])
    attention = {f"model.decoder.layers.0.self_attn.{name}_proj": (48, 64) for name in "qkv"}
    expected = {
        **attention,
        "model.decoder.layers.0.self_attn.out_proj": (64, 48),
        "model.decoder.layers.1.fc1": (40, 64),
        "model.decoder.layers.1.fc2": (64, 40),
    }
    found = own_sizes.stated(model)
    assert found.pop("model.decoder.layers.0.self_attn") == {"num_heads": 3}
    assert found == {
        name: {"out_features": rows, "in_features": columns, "bias": 1} for name, (rows, columns) in expected.items()
    }


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_it_is_quantized_saved_and_loaded_and_no_library_makes_it_anew(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    cut(subject.model)
    shapes = {name: architecture.shape(layer) for name, layer in architecture.block_linears(subject.model).items()}
    subject = RoundToNearest(4, 16, symmetric=True).apply(subject, CalibrationText.empty())
    artifact.save(subject, tmp_path / "artifact")
    model = artifact.load(tmp_path / "artifact", prepare=False).model
    assert torch.equal(outputs(model), outputs(subject.model))
    assert {name: architecture.shape(model.get_submodule(name)) for name in shapes} == shapes
    with pytest.raises(Unsupported, match="has a size that no configuration of transformers says"):
        to_compressed_tensors(tmp_path / "artifact", tmp_path / "exported")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scales_still_fold_into_what_makes_the_values_of_each_head(name: str) -> None:
    model = tiny_model(name)
    cut(model)
    expected = outputs(model)
    for block in architecture.blocks(model):
        for fold in folds(model):
            channels = architecture.shape(block.get_submodule(fold.consumers[0]))[1]
            fold.apply(block, torch.linspace(0.5, 2, channels))
    assert_near(outputs(model), expected)


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"model.layers.2.mlp.up_proj": SIZES}, "'model.layers.2.mlp.up_proj' has no such sizes"),
        ({"model.norm": SIZES}, "'model.norm' has no such sizes"),
        ({LAYER: {"out_features": 32}}, "has no such sizes"),
        ({LAYER: {**SIZES, "forward": 1}}, "has no such sizes"),
        ({LAYER: 3}, "has no such sizes as 3"),
        ({LAYER: {**SIZES, "out_features": 0}}, "out_features is 0, expected a number"),
        ({LAYER: {**SIZES, "in_features": "64"}}, "in_features is '64', expected a number"),
        ([LAYER], "own_sizes is .* expected sizes by module"),
        ({LAYER: SIZES}, "does not fit"),
        ({LAYER: {**SIZES, "out_features": 2**40}}, "does not fit"),
    ],
)
def test_sizes_that_are_not_so_are_refused(sizes: Any, reason: str, tmp_path: Path) -> None:
    artifact.save(tiny_subject("llama"), tmp_path)
    path = tmp_path / artifact.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "own_sizes": sizes}))
    with pytest.raises(IntegrityError, match=reason):
        artifact.load(tmp_path)
