"""EoRA: the change is the paper's, and no other of its rank leaves less of the outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from squeeze.core.errors import SqueezeError
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.eora import EoRA, eigenspace
from squeeze.techniques.low_rank.lqer import LQER
from squeeze.techniques.low_rank.residual import change
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.output_errors import energy, output_errors
from tests.tiny import tiny_model, tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(count: int = 200) -> torch.Tensor:
    """(count, 24), whose channels differ in size and hang together."""
    return drawn(count, 24, seed=1) @ (drawn(24, 24, seed=2) * torch.logspace(-0.5, 0.5, 24))


@pytest.mark.parametrize("rows", [16, 40])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_it_is_the_formula_of_the_paper(rank: int, rows: int) -> None:
    """Section 3, written down in float64: project, truncate, project back."""
    residual, x = drawn(rows, 24), inputs()
    hessian = x.T @ x / len(x)
    energies, vectors = np.linalg.eigh(hessian.double().numpy())
    left, values, right = np.linalg.svd(residual.double().numpy() @ vectors * np.sqrt(energies), full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ (right[:rank] / np.sqrt(energies)) @ vectors.T
    down, up = change(residual, rank, eigenspace(hessian))
    assert (down.shape, up.shape) == ((rank, 24), (rows, rank))
    assert np.allclose((up @ down).numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    left_over = energy(residual - up @ down, hessian)
    assert left_over == pytest.approx(float(np.square(values[rank:]).sum()), rel=1e-5)


def test_no_other_change_of_rank_one_leaves_less() -> None:
    """All directions of two outputs, each with the best that can be read off the inputs: at 1 degree, 180 of them."""
    residual, x = drawn(2, 24), inputs()
    hessian = x.T @ x / len(x)
    down, up = change(residual, 1, eigenspace(hessian))
    angles = torch.arange(180) * torch.pi / 180
    tried = [
        energy(residual - torch.outer(direction, direction) @ residual, hessian)
        for direction in torch.stack([angles.cos(), angles.sin()], dim=1)
    ]
    best = energy(residual - up @ down, hessian)
    assert best <= min(tried) * (1 + 1e-5)
    assert best == pytest.approx(min(tried), rel=1e-2)


@pytest.mark.parametrize("count", [0, 1, 10])
def test_inputs_that_do_not_reach_everywhere_make_nothing_worse(count: int) -> None:
    """Of fewer tokens than channels; of none, as of an expert that was never chosen."""
    residual, x = drawn(16, 24), inputs(count)
    hessian = x.T @ x / max(count, 1)
    down, up = change(residual, 4, eigenspace(hessian))
    assert torch.isfinite(down).all()
    assert torch.isfinite(up).all()
    assert energy(residual - up @ down, hessian) <= energy(residual, hessian)
    assert energy(residual - up @ down, torch.eye(24)) <= energy(residual, torch.eye(24))


def test_it_leaves_less_of_each_layers_outputs_than_other_scales_do() -> None:
    left = []
    for step in (EoRA(4, False), LQER(4, True, False), LQER(4, False, False)):
        text = CalibrationText(TEXT, load_baseline=lambda: tiny_model("llama"))
        subject = RoundToNearest(3, 32, symmetric=True).apply(tiny_subject("llama"), text)
        left.append(output_errors(step.apply(subject, text), "llama", TEXT))
    eora, *others = left
    for other in others:
        assert all(eora[name] < error for name, error in other.items())


def test_a_change_of_a_higher_rank_leaves_less() -> None:
    text = CalibrationText(TEXT, load_baseline=lambda: tiny_model("gpt2"))
    errors = [
        sum(
            output_errors(
                EoRA(rank, False).apply(RoundToNearest(2, 32, True).apply(tiny_subject("gpt2"), text), text),
                "gpt2",
                TEXT,
            ).values()
        )
        for rank in (1, 4, 16, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6, "of full rank it is the uncompressed model"


def test_it_needs_text() -> None:
    nothing = CalibrationText(TEXT[:0], load_baseline=lambda: tiny_model("llama"))
    subject = RoundToNearest(4, 32, symmetric=True).apply(tiny_subject("llama"), nothing)
    with pytest.raises(SqueezeError, match="no tokens"):
        EoRA(4, False).apply(subject, nothing)
