"""The matrix that a layer shows is the one that it multiplies with, or it is found out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from squeeze.layers.int8 import Int8Linear
from squeeze.layers.sparse import SparseLinear
from squeeze.probes.products import agreement, mismatches
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject


def weight(rows: int = 96, columns: int = 128) -> torch.Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(0))


def test_rounding_is_allowed() -> None:
    layer = Int8Linear.of(weight(), None)
    assert agreement(layer, layer.dequantize(), None).holds


@pytest.mark.parametrize("seen", [0.01, 1.0, -1.0, 40.0, 900.0])
@pytest.mark.parametrize("ends", [(-0.3, 40.0), (-3.0, 3.0), (-400.0, 0.1)])
def test_a_fixed_grid_of_inputs_is_allowed_whatever_part_of_it_was_seen(ends: tuple[float, float], seen: float) -> None:
    layer = Int8Linear.of(weight().bfloat16(), None, input_range=ends)
    found = agreement(layer, layer.dequantize(), torch.full((1, 128), seen, dtype=torch.bfloat16))
    assert found.holds


def test_a_large_bias_is_allowed() -> None:
    layer = SparseLinear.of(weight().bfloat16(), torch.full((96,), 300.0, dtype=torch.bfloat16))
    assert agreement(layer, layer.dequantize(), torch.ones(1, 128, dtype=torch.bfloat16)).holds


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_zeros_that_are_not_there_are_found(share: float) -> None:
    whole = weight()
    layer = SparseLinear.of(whole, None)
    shown = torch.where(whole.abs() < whole.abs().quantile(share), 0, whole)
    assert agreement(layer, whole, None).holds
    found = agreement(layer, shown, None)
    assert found.stray == pytest.approx(share, abs=0.05)
    assert not found.holds


def test_a_layer_that_knows_unit_vectors_is_found_by_others() -> None:
    whole = weight()
    shown = torch.where(whole.abs() < whole.abs().median(), 0, whole)

    class Knowing(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            single = (inputs != 0).sum(dim=1, keepdim=True) <= 1
            return torch.where(single, inputs @ shown.T, inputs @ whole.T)

    found = agreement(Knowing(), shown, None)
    assert found.stray == 0
    assert found.relative > 0.1
    assert not found.holds


def test_a_matrix_of_another_shape_is_found() -> None:
    assert not agreement(SparseLinear.of(weight(), None), weight(96, 256), None).holds


def test_the_layer_is_named() -> None:
    stored, running = (
        RoundToNearest(8, None, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty()).model
        for _ in range(2)
    )
    assert mismatches(stored, running, {}) == []
    stored.get_submodule("model.layers.1.mlp.down_proj").scales *= 2
    (told,) = mismatches(stored, running, {})
    assert told.startswith("dequantize != forward: model.layers.1.mlp.down_proj multiplies with other weights")
