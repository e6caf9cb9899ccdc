"""SparseGPT against the recursion that it stands for, and on whole models."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import layer_specs
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning import sparsegpt
from squeeze.techniques.pruning.selection import lowest
from squeeze.techniques.pruning.sparsegpt import SparseGPT
from squeeze.techniques.pruning.wanda import Wanda
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (6, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


def technique(sparsity: float = 0.5, run: int | None = None, sequential: bool = False) -> SparseGPT:
    return SparseGPT(sparsity, run, damping=0.01, sequential=sequential)


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (24, 192) and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1024, 192, generator=generator) @ torch.randn(192, 192, generator=generator)
    return torch.randn(24, 192, generator=generator), x.T @ x / len(x)


def recursion(weight: torch.Tensor, hessian: torch.Tensor, sparsity: float, run: int | None) -> torch.Tensor:
    """Column after column in float64, the inverse Hessian of what is left written out (eq. 3 and figure 4)."""
    columns, step = weight.shape[1], run or sparsegpt.BLOCK
    damped = (hessian + 0.01 * torch.diag(hessian.diagonal())).double()
    pivots = [torch.linalg.inv(damped[i:, i:])[0, 0] for i in range(columns)]
    w = weight.double().clone()
    for i in range(columns):
        if i % step == 0:
            scores = w[:, i : i + step] ** 2 / torch.stack(pivots[i : i + step])
            chosen = lowest(scores, sparsity) if run else lowest(scores.T.flatten(), sparsity).view_as(scores.T).T
        inverse = torch.linalg.inv(damped[i:, i:])
        kept = w[:, i].masked_fill(chosen[:, i % step], 0)
        w[:, i:] -= ((w[:, i] - kept) / inverse[0, 0])[:, None] * inverse[0]
        w[:, i] = kept
    return w.float()


@pytest.mark.parametrize(("sparsity", "run"), [(0.5, None), (0.25, None), (0.5, 4), (0.5, 6)])
def test_it_is_the_papers_recursion(sparsity: float, run: int | None) -> None:
    weight, hessian = problem()
    found = technique(sparsity, run).prune(weight, hessian)
    expected = recursion(weight, hessian, sparsity, run)
    same = ((found == 0) == (expected == 0)).all(0)
    assert same.float().mean() > 0.98  # in float32, two scores that are all but equal may change places
    if same.all():
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("sparsity", "run"), [(0.5, None), (0.5, 4), (0.0, None)])
def test_uncorrelated_inputs_change_no_weight_that_stays(sparsity: float, run: int | None) -> None:
    weight, _ = problem()
    energies = torch.linspace(0.1, 2, 192)
    found = technique(sparsity, run).prune(weight, torch.diag(energies))
    assert torch.equal(found, weight.masked_fill(found == 0, 0))
    assert (found == 0).sum() == sparsity * weight.numel()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("run", [None, 4])
def test_outputs_err_less_than_without_updates(run: int | None, seed: int) -> None:
    weight, hessian = problem(seed)

    def loss(pruned: torch.Tensor) -> float:
        return float((((pruned - weight) @ hessian) * (pruned - weight)).sum())

    norms = hessian.diagonal().sqrt()
    plain = lowest((weight.abs() * norms).reshape(24, -1, run or 192), 0.5).flatten(1)
    assert loss(technique(0.5, run).prune(weight, hessian)) < 0.8 * loss(weight.masked_fill(plain, 0))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_lose_less_than_without_updates(name: str, sequential: bool) -> None:
    expected = tiny_model(name)(TOKEN_IDS)[0]
    ours = technique(sequential=sequential).apply(tiny_subject(name), CALIBRATION)
    theirs = Wanda(0.5, None, sequential).apply(tiny_subject(name), CALIBRATION)
    errors = [(subject.model(TOKEN_IDS)[0] - expected).norm() for subject in (ours, theirs)]
    assert errors[0] < errors[1]
    assert ours.claims == {"sparsity": 0.5, "hessian": "sequential" if sequential else "shared"}


def test_what_it_cannot_do_is_refused_before_any_work() -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=r"sparsity 0\.3 of 4 weights"):
        technique(0.3, 4).apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)
