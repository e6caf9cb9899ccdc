"""Two thin layers in the place of one: described, saved and compressed as layers of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.layers.contract import (
    count_parameters,
    float_linears,
    is_compressed,
    is_described,
    layer_specs,
    matrices,
    spec,
)
from squeeze.layers.factors import Factors
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

NAME = "model.layers.0.mlp.up_proj"
TOKEN_IDS = torch.arange(24).reshape(2, 12)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 8


def with_factors(rank: int = 8) -> Subject:
    subject = tiny_subject("llama")
    rows, columns = architecture.weight(subject.model.get_submodule(NAME)).shape
    made = Factors.of(drawn(rank, columns), drawn(rows, rank, seed=1), None)
    architecture.replace(subject.model, NAME, made)
    return subject


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_multiplies_with_its_product(dtype: str, bias: bool) -> None:
    down, up, b, inputs = (
        tensor.to(getattr(torch, dtype))
        for tensor in (drawn(4, 16), drawn(12, 4, seed=1), drawn(12, seed=2), drawn(3, 16, seed=3))
    )
    layer = Factors.of(down, up, b if bias else None)
    expected = nn.functional.linear(inputs @ down.T, up, b if bias else None)
    assert torch.equal(layer(inputs), expected)
    assert spec(layer) == {"in_features": 16, "out_features": 12, "rank": 4, "bias": bias, "dtype": dtype}
    again = Factors(**spec(layer))
    again.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(again(inputs), expected)
    assert is_described(layer)
    assert not is_compressed(layer)


def test_its_parts_are_the_matrices_of_the_model() -> None:
    subject, dense = with_factors(), tiny_subject("llama").model
    names = [name for name, _ in matrices(subject.model)]
    assert {f"{NAME}.down", f"{NAME}.up"} <= {*names}
    assert NAME not in names
    assert float_linears(subject.model) == names
    rows, columns = architecture.weight(dense.get_submodule(NAME)).shape
    assert count_parameters(subject.model) == count_parameters(dense) - rows * columns + 8 * (rows + columns)


def test_it_comes_back_from_an_artifact_dense_or_with_codes(tmp_path: Path) -> None:
    rounded = RoundToNearest(8, None, True).apply(with_factors(), CalibrationText.empty())
    assert type(rounded.model.get_submodule(f"{NAME}.up")) is QuantizedLinear
    assert type(rounded.model.get_submodule(NAME)) is Factors
    for folder, subject in (("floats", with_factors()), ("codes", rounded)):
        artifact.save(subject, tmp_path / folder)
        assert NAME in layer_specs(subject.model)
        loaded = artifact.load(tmp_path / folder, prepare=False)
        with torch.inference_mode():
            assert torch.equal(loaded.model(TOKEN_IDS).logits, subject.model(TOKEN_IDS).logits)
