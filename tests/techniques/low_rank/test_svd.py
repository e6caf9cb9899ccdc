"""Truncated singular values: the errors are those of the theorems, the whitened ones the smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports import checkpoint
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters, float_linears, layer_specs
from squeeze.layers.factors import Factors
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES
from squeeze.probes import size
from squeeze.probes.recount import recount
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank import svd
from squeeze.techniques.low_rank.factorisation import factors, rank_of
from squeeze.techniques.low_rank.svd import SVD
from squeeze.techniques.quantization.awq import AWQ
from squeeze.techniques.quantization.bitsandbytes import Float4, LLMInt8
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.smoothquant import SmoothQuant
from tests.output_errors import output_errors
from tests.tiny import tiny_model, tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_and_hessian() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (tokens, in_features) whose channels differ in size and hang together."""
    x = drawn(200, 24, seed=1) @ (drawn(24, 24, seed=2) * torch.logspace(-1, 1, 24))
    return x, x.T @ x / len(x)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_the_plain_error_is_the_tail_of_the_singular_values(rank: int) -> None:
    weight = drawn(16, 24)
    down, up = factors(weight, rank, None)
    tail = torch.linalg.svdvals(weight)[rank:].square().sum()
    assert (down.shape, up.shape) == ((rank, 24), (16, rank))
    assert float((weight - up @ down).square().sum()) == pytest.approx(float(tail), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_factors_are_those_of_the_formula(rank: int) -> None:
    """SVD-LLM, section 3.1, written down in float64."""
    weight, (_, hessian) = drawn(16, 24), inputs_and_hessian()
    damped = hessian.double().numpy() * (1 + 0.01 * np.eye(24))
    whitening = np.linalg.cholesky(damped)
    left, values, right = np.linalg.svd(weight.double().numpy() @ whitening, full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank] @ np.linalg.inv(whitening)
    down, up = factors(weight, rank, svd.whitener(hessian, 0.01))
    assert np.allclose((up @ down).numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    missing = (weight - up @ down).double().numpy() @ whitening
    assert np.square(missing).sum() == pytest.approx(np.square(values[rank:]).sum(), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_whitened_error_of_the_outputs_is_the_tail_and_less_than_the_plain_one(rank: int) -> None:
    weight, (x, hessian) = drawn(16, 24), inputs_and_hessian()
    root = svd.whitener(hessian, 0.0)
    assert torch.allclose(root @ root.T, hessian, rtol=1e-4, atol=1e-4 * float(hessian.max()))

    def error(down: torch.Tensor, up: torch.Tensor) -> float:
        return float((x @ (weight - up @ down).T).square().sum() / len(x))

    whitened, plain = error(*factors(weight, rank, root)), error(*factors(weight, rank, None))
    tail = torch.linalg.svdvals(weight @ root)[rank:].square().sum()
    assert whitened == pytest.approx(float(tail), rel=1e-3)
    assert whitened < plain


def test_inputs_that_hang_together_need_damping() -> None:
    with pytest.raises(SqueezeError, match="not positive definite with damping=0"):
        svd.whitener(torch.ones(3, 3), 0.0)
    assert torch.isfinite(svd.whitener(torch.ones(3, 3), 0.01)).all()


@pytest.mark.parametrize("energies", [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [1e-12, 1e-12, 1e-12]])
def test_factors_have_one_norm_whatever_the_size_of_the_inputs(energies: list[float]) -> None:
    """All zero are those of an expert that was never chosen."""
    weight, root = drawn(4, 3), svd.whitener(torch.diag(torch.tensor(energies)), 0.01)
    down, up = factors(weight, 3, root)
    assert float(down.norm()) == pytest.approx(float(up.norm()), rel=1e-5)
    assert torch.allclose(up @ down, weight, atol=1e-5)


def test_a_matrix_of_zeros_has_factors_of_zeros() -> None:
    down, up = factors(torch.zeros(4, 3), 2, None)
    assert torch.equal(up @ down, torch.zeros(4, 3))


def test_the_rank_is_the_highest_that_keeps_the_share() -> None:
    rank = rank_of(192, 576, 0.8)
    assert rank * (192 + 576) <= 0.8 * 192 * 576 < (rank + 1) * (192 + 576)
    assert rank_of(4, 4, 0.01) == 1


@pytest.mark.parametrize("whitened", [True, False])
def test_the_model_has_fewer_weights_and_says_so(whitened: bool, tmp_path: Path) -> None:
    technique = SVD(0.5, whitened=whitened, damping=0.01, sequential=True)
    subject = technique.apply(tiny_subject("llama"), CalibrationText(TEXT if whitened else TEXT[:0]))
    dense = tiny_model("llama")
    layers = [module for module in subject.model.modules() if isinstance(module, Factors)]
    assert len(layers) == 14
    assert subject.claims == {"parameters": count_parameters(dense)}
    within = sum(layer.rank * (layer.in_features + layer.out_features) for layer in layers)
    assert within <= 0.5 * sum(layer.in_features * layer.out_features for layer in layers)
    artifact.save(subject, tmp_path)
    assert artifact.describe(tmp_path)["parameters"] == count_parameters(dense)
    found = recount(tmp_path, artifact.load(tmp_path, prepare=False), dense)
    assert found.weights == within
    assert (found.effective_bits, found.compressed_share) == (32, 0), "fewer weights, not smaller ones"


def test_factors_of_full_rank_are_the_model_itself() -> None:
    """No share has such a rank, whose factors would be larger than the matrix: nothing but rounding changes."""
    subject, dense = tiny_subject("llama"), tiny_model("llama")
    for name in float_linears(subject.model):
        weight = subject.model.get_submodule(name).weight.data
        down, up = factors(weight, min(weight.shape), None)
        subject.model.get_submodule(name).weight.data = up @ down
    with torch.inference_mode():
        assert torch.allclose(subject.model(TEXT).logits, dense(TEXT).logits, atol=1e-4)


@pytest.mark.parametrize("step", [RoundToNearest(4, 32, True), SmoothQuant(alpha=0.5)])
def test_codes_of_an_earlier_step_are_no_longer_claimed(step: Any) -> None:
    quantized = step.apply(tiny_subject("llama"), CalibrationText(TEXT))
    assert quantized.claims.keys() & set(OF_CODES)
    subject = SVD(0.8, whitened=False, damping=0.01, sequential=True).apply(quantized, CalibrationText.empty())
    assert not subject.claims.keys() & set(OF_CODES)


@pytest.mark.parametrize("name", ["opt", "gpt2"])
@pytest.mark.parametrize("sequential", [True, False])
def test_biases_stay(name: str, sequential: bool) -> None:
    dense = tiny_model(name)
    subject = SVD(0.5, whitened=True, damping=0.01, sequential=sequential).apply(
        tiny_subject(name), CalibrationText(TEXT)
    )
    layers = {layer: module for layer, module in subject.model.named_modules() if isinstance(module, Factors)}
    assert layers
    for layer, module in layers.items():
        assert module.bias is not None
        assert torch.equal(module.bias, dense.get_submodule(layer).bias)


def test_bytes_that_describe_rounded_factors_are_no_hidden_weights() -> None:
    """Three layers for each matrix are described: its factors, and what joins them."""
    factored = SVD(0.8, whitened=False, damping=0.01, sequential=True).apply(
        tiny_subject("llama"), CalibrationText.empty()
    )
    subject = RoundToNearest(8, None, True).apply(factored, CalibrationText.empty())
    described = json.dumps(layer_specs(subject.model), indent=1)
    assert 512 * 14 < len(described) < size.DESCRIBED * 14


@pytest.mark.parametrize(
    "step",
    [LLMInt8(6.0), Float4("nf4", double_quant=False), SmoothQuant(alpha=0.5), AWQ(4, 32, True, clip=False)],
    ids=lambda step: type(step).__name__,
)
def test_what_takes_plain_layers_alone_refuses_factors(step: Any) -> None:
    factored = SVD(0.8, whitened=False, damping=0.01, sequential=True).apply(
        tiny_subject("llama"), CalibrationText.empty()
    )
    with pytest.raises(Unsupported, match="Factors"):
        step.apply(factored, CalibrationText(TEXT))


def test_an_export_refuses_factors() -> None:
    factored = SVD(0.8, whitened=False, damping=0.01, sequential=True).apply(
        tiny_subject("llama"), CalibrationText.empty()
    )
    subject = RoundToNearest(8, None, True).apply(factored, CalibrationText.empty())
    with pytest.raises(Unsupported, match="a Factors is several matrices"):
        checkpoint.packed_layers(subject, (torch.nn.Linear,))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_another_share_is_refused(share: float) -> None:
    with pytest.raises(Unsupported, match="expected more than 0, at most 1"):
        SVD(share, whitened=True, damping=0.01, sequential=True).apply(tiny_subject("llama"), CalibrationText(TEXT))


def test_whitened_factors_leave_less_of_each_layers_outputs_than_plain_ones() -> None:
    """Those of keys and values, which have fewer rows than there are queries, too."""
    found = {}
    for whitened in (True, False):
        technique = SVD(0.5, whitened=whitened, damping=1e-4, sequential=False)
        found[whitened] = output_errors(technique.apply(tiny_subject("llama"), CalibrationText(TEXT)), "llama", TEXT)
    rows = {name: len(layer.weight) for name, layer in architecture.block_linears(tiny_model("llama")).items()}
    assert rows["model.layers.0.self_attn.k_proj"] < rows["model.layers.0.self_attn.q_proj"]
    assert found[True].keys() == rows.keys()
    assert all(found[True][name] < error for name, error in found[False].items())
