"""Whether batches change scores: what the probe flags really does, what it passes really does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from squeeze.models.architecture import block_linears, replace, weight
from squeeze.probes.batching import batch_dependent, row_dependent, takes_branches
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.tiny import CAUSAL, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()


class OutliersApart(nn.Module):
    """A layer whose input columns with an outlier anywhere in the call are multiplied apart, unrounded (LLM.int8)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outliers = (inputs.abs() > 2.5).flatten(0, -2).any(0)
        return self.layer(torch.where(outliers, inputs, (8 * inputs).round() / 8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_float_model_scores_alike_in_every_batch_and_takes_branches(name: str, dtype: str) -> None:
    model = tiny_model(name, dtype)
    assert not batch_dependent(model)
    assert takes_branches(model)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_of_few_bits_change_nothing(bits: int) -> None:
    model = RoundToNearest(bits, 32, symmetric=True).apply(tiny_subject("llama", "bfloat16"), NO_DATA).model
    assert not batch_dependent(model)
    assert takes_branches(model)


def test_activations_with_one_scale_a_call_are_flagged() -> None:
    model = TorchDynamic(per_channel=True, activation_bits=7).apply(tiny_subject("llama"), NO_DATA).model
    assert batch_dependent(model)
    assert row_dependent(model)


def test_outliers_set_apart_for_the_whole_call_are_flagged() -> None:
    model = tiny_model("llama")
    for name, layer in block_linears(model).items():
        replace(model, name, OutliersApart(layer))
    assert batch_dependent(model)
    assert row_dependent(model)


def test_a_diverged_model_is_not_taken_for_a_batch_dependent_one() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    assert not batch_dependent(model)


@pytest.mark.parametrize("lost", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_that_ignores_an_argument_is_found_out(name: str, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(name)
    for layer in block_linears(model).values():  # random attention is flat: sharper, it depends on where a token stands
        weight(layer).mul_(8)
    assert takes_branches(model)
    forward = model.base_model.forward
    monkeypatch.setattr(model.base_model, "forward", lambda **inputs: forward(**{**inputs, lost: None}))
    assert not takes_branches(model)


def test_a_model_without_such_arguments_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    forward = model.base_model.forward
    monkeypatch.setattr(
        model.base_model, "forward", lambda input_ids, use_cache: forward(input_ids=input_ids, use_cache=use_cache)
    )
    assert not takes_branches(model)
