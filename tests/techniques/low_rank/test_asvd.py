"""ASVD: columns of large inputs are kept most faithfully, as the formula has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.layers.factors import Factors
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.asvd import ASVD, scales
from squeeze.techniques.low_rank.factorisation import factors, rank_of
from squeeze.techniques.low_rank.svd import SVD
from tests.output_errors import matrix
from tests.tiny import tiny_model, tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("alpha", "kept"), [(0.0, 1), (0.5, 0), (1.0, 0)])
def test_the_column_of_large_inputs_is_kept(alpha: float, kept: int) -> None:
    """1 and 1.5; with alpha 1/2, 1 * 4 and 1.5 * 1."""
    weight = torch.diag(torch.tensor([1.0, 1.5]))
    down, up = factors(weight, 1, torch.diag(scales(torch.tensor([16.0, 1.0]), alpha)))
    expected = torch.zeros(2, 2)
    expected[kept, kept] = weight[kept, kept]
    assert torch.allclose(up @ down, expected, atol=1e-6)


def test_inputs_that_were_always_zero_are_given_a_size() -> None:
    assert scales(torch.tensor([4.0, 0.0]), 0.5).tolist() == [2, 1]


def test_the_model_has_the_factors_of_the_formula() -> None:
    """Section 3.3, written down in float64, of the inputs of the uncompressed model."""
    subject = ASVD(0.5, 0.5, sequential=False).apply(tiny_subject("llama"), CalibrationText(TEXT))
    assert subject.claims == {"parameters": count_parameters(tiny_model("llama"))}
    for block, module, inputs in CalibrationText(TEXT).input_statistics(tiny_model("llama")):
        for name, statistics in inputs.items():
            weight = architecture.weight(module.get_submodule(name)).double().numpy()
            sizes = np.sqrt(statistics.mean_abs.double().numpy())
            left, values, right = np.linalg.svd(weight * sizes, full_matrices=False)
            rank = rank_of(*weight.shape, 0.5)
            expected = (left[:, :rank] * values[:rank]) @ right[:rank] / sizes
            found = matrix(subject.model.get_submodule(f"{block}.{name}")).numpy()
            assert np.allclose(found, expected, rtol=0, atol=1e-4 * np.abs(weight).max()), name


def test_with_alpha_zero_it_is_plain_truncation() -> None:
    asvd = ASVD(0.5, 0.0, sequential=False).apply(tiny_subject("gpt2"), CalibrationText(TEXT))
    plain = SVD(0.5, whitened=False, damping=0.0, sequential=False).apply(tiny_subject("gpt2"), CalibrationText.empty())
    layers = [name for name, module in plain.model.named_modules() if isinstance(module, Factors)]
    assert layers
    for name in layers:
        found, expected = (matrix(each.model.get_submodule(name)) for each in (asvd, plain))
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("alpha", [-0.5, float("nan")])
def test_another_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(Unsupported, match="expected alpha from 0 on"):
        ASVD(0.5, alpha, sequential=False).apply(tiny_subject("llama"), CalibrationText(TEXT))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_another_share_is_refused(share: float) -> None:
    with pytest.raises(Unsupported, match="asvd cannot keep a share"):
        ASVD(share, 0.5, sequential=False).apply(tiny_subject("llama"), CalibrationText(TEXT))


def test_it_needs_text() -> None:
    with pytest.raises(SqueezeError, match="no tokens"):
        ASVD(0.5, 0.5, sequential=False).apply(tiny_subject("llama"), CalibrationText.empty())
