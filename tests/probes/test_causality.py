"""A model that sees the future is found out, and no honest one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from squeeze.layers.contract import prepare_layers
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.batching import row_dependent
from squeeze.probes.causality import EXACT, Causality
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.quantization.bitsandbytes import LLMInt8
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from squeeze.techniques.quantization.torchao import Int8 as TorchAO
from tests.scored import made_up_data, measure  # noqa: F401 - a fixture
from tests.tiny import CAUSAL, tiny_subject

NO_DATA = CalibrationText.empty()
TEXT_ONLY: dict[str, Any] = {"tasks": []}


class Ahead(nn.Module):
    """Adds to each token's outputs a share of the next one's."""

    def __init__(self, layer: nn.Module, share: float, disturbed: bool) -> None:
        super().__init__()
        self.layer, self.share, self.disturbed = layer, share, disturbed

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs)
        if self.disturbed:  # by all tokens of a call, as if its activations were quantized
            found = found * (1 + 1e-3 * float(inputs.mean()))
        return torch.cat([found[:, :-1] + self.share * found[:, 1:], found[:, -1:]], dim=1)


def looking_ahead(dtype: str, share: float = 1.0, disturbed: bool = False) -> Subject:
    subject = tiny_subject("llama", dtype)
    name = "model.layers.0.mlp.down_proj"
    architecture.replace(subject.model, name, Ahead(subject.model.get_submodule(name), share, disturbed))
    return subject


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_are(name: str, dtype: str, tmp_path: Any) -> None:
    found = measure(tiny_subject(name, dtype), tmp_path, **TEXT_ONLY).values
    assert found["causal"] is True
    assert found["causal_difference"] <= (1e-4 if dtype == "float32" else 0.1)


@pytest.mark.parametrize(
    "technique",
    [
        RoundToNearest(2, 32, symmetric=False),
        TorchDynamic(per_channel=True, activation_bits=7),
        TorchAO(dynamic=True),
        LLMInt8(1.0),  # tiny models have no values above 6
        KIVI(2, 32),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_compressed_ones_are_causal_too(technique: Any, tmp_path: Any) -> None:
    subject = technique.apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    prepare_layers(subject.model)
    assert measure(subject, tmp_path, **TEXT_ONLY).values["causal"] is True


@pytest.mark.promise(16)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_that_looks_one_token_ahead_is_found(dtype: str, tmp_path: Any, figure: Callable[[str], None]) -> None:
    found = measure(looking_ahead(dtype), tmp_path, **TEXT_ONLY).values
    assert found["causal"] is False
    figure(f"caught, a layer that looks a token ahead: scores move by up to {found['causal_difference']:.2g} nats")


@pytest.mark.promise(16)
def test_attention_without_its_mask_is_found(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    true = F.scaled_dot_product_attention

    def sees_all(*arguments: Any, attn_mask: Any = None, is_causal: bool = False, **named: Any) -> Tensor:
        return true(*arguments, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", sees_all)
    found = measure(tiny_subject("llama"), tmp_path, **TEXT_ONLY).values
    assert found["causal"] is False
    figure(f"caught, attention without its mask: scores move by up to {found['causal_difference']:.2g} nats")


def test_dependence_on_the_call_is_told_from_a_look_ahead() -> None:
    dynamic = TorchDynamic(per_channel=True, activation_bits=7).apply(tiny_subject("llama"), NO_DATA)
    prepare_layers(dynamic.model)
    assert row_dependent(dynamic.model)
    assert row_dependent(looking_ahead("float32", disturbed=True).model)
    assert not row_dependent(looking_ahead("float32").model)


@pytest.mark.parametrize(
    ("gains", "holds"),
    [
        ([0.05, -0.4, 0.1], True),  # noise, either way
        ([1.2] * 3, False),  # all tokens were likelier with their true future: perplexity 7 for 23
        ([0.0] * 40 + [5.0], False),  # the one before the change knew what came
        ([np.nan] * 3, True),  # a diverged model has no scores
    ],
)
def test_where_scores_depend_on_the_call_what_counts_is_who_gains(gains: list[float], holds: bool) -> None:
    assert Causality([np.array(gains)], None).holds is holds


@pytest.mark.parametrize(("moved", "holds"), [(0.05, True), (-0.2, False), (0.2, False)])
def test_elsewhere_nothing_moves_but_by_rounding(moved: float, holds: bool) -> None:
    assert Causality([np.array([0.0, moved])], EXACT).holds is holds
