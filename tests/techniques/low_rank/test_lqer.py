"""LQER and L2QER: the change is the paper's, with and without the scale of the inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from squeeze.layers.contract import matrices
from squeeze.layers.lora import LoraLinear
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.lqer import LQER
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_model, tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("scaled", [True, False])
def test_it_is_the_formula_of_the_paper(name: str, scaled: bool) -> None:
    """The best of rank 4 of (W - W_q) S, times S^-1, in float64; without a scale, and without text, of W - W_q."""
    text = CalibrationText(TEXT if scaled else TEXT[:0], load_baseline=lambda: tiny_model(name))
    packed = RoundToNearest(3, 32, symmetric=True).apply(tiny_subject(name), text)
    taken = {
        layer: architecture.weight(tiny_model(name).get_submodule(layer)) - module.dequantize()
        for layer, module in matrices(packed.model)
    }
    subject = LQER(4, scaled=scaled, sequential=False).apply(packed, text)
    for block, _, inputs in CalibrationText(TEXT).input_statistics(tiny_model(name)):
        for layer, statistics in inputs.items():
            residual = taken[f"{block}.{layer}"].double().numpy()
            sizes = statistics.mean_abs.double().numpy() if scaled else np.ones(residual.shape[1])
            left, values, right = np.linalg.svd(residual * sizes, full_matrices=False)
            expected = (left[:, :4] * values[:4]) @ right[:4] / sizes
            beside = subject.model.get_submodule(f"{block}.{layer}")
            assert isinstance(beside, LoraLinear)
            found = (beside.lora_B @ beside.lora_A).numpy()
            assert np.allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max()), layer
