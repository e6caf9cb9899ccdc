"""The forward that decodes is the one that is scored, or the row says so."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from squeeze.layers.contract import prepare_layers
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.decoding import difference
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Technique
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.kernels import KERNELS
from tests.tiny import ARCHITECTURES, tiny_subject

TOKEN_IDS = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(0))
NO_DATA = CalibrationText.empty()


class WrongForFewRows(nn.Linear):
    """Reads all columns where there are many rows, all but the last four where there are few."""

    def __init__(self, layer: nn.Linear, spoilt: float = 0.0) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight, self.spoilt = layer.weight, spoilt

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs[..., 0].numel() <= 32:
            inputs = torch.cat([inputs[..., :-4], torch.full_like(inputs[..., -4:], self.spoilt)], dim=-1)
        return super().forward(inputs)


def prepared(technique: Technique, dtype: str) -> Subject:
    subject = technique.apply(tiny_subject("llama", dtype), NO_DATA)
    prepare_layers(subject.model)
    return subject


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float_layers_differ_by_rounding(name: str, dtype: str) -> None:
    assert difference(tiny_subject(name, dtype).model, TOKEN_IDS).mismatches() == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "technique",
    [
        RoundToNearest(3, 32, symmetric=False),
        RoundToNearest(8, 32, symmetric=False),
        *KERNELS,
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_honest_layers_differ_by_rounding(technique: Technique, dtype: str) -> None:
    found = difference(prepared(technique, dtype).model, TOKEN_IDS)
    assert found.mismatches() == []
    assert found.figures()["decode_difference"] == found.relative


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_layer_that_is_wrong_for_few_rows_is_named(dtype: str) -> None:
    model = tiny_subject("llama", dtype).model
    name = "model.layers.1.mlp.up_proj"
    architecture.replace(model, name, WrongForFewRows(model.get_submodule(name)))
    found = difference(model, TOKEN_IDS)
    assert found.layer == name
    (said,) = found.mismatches()
    assert said.startswith(f"decode != score: {name} gives few rows")


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_what_is_no_number_is_a_mismatch_and_no_figure(spoilt: float) -> None:
    model = tiny_subject("llama").model
    name = "model.layers.0.self_attn.q_proj"
    architecture.replace(model, name, WrongForFewRows(model.get_submodule(name), spoilt))
    found = difference(model, TOKEN_IDS)
    assert found.layer == name
    assert len(found.mismatches()) == 1
    assert found.figures() == {"decode_difference": None}


def test_a_diverged_model_decodes_as_it_scores() -> None:
    model = tiny_subject("llama").model
    model.model.layers[0].mlp.down_proj.weight.fill_(math.nan)
    assert difference(model, TOKEN_IDS).mismatches() == []
