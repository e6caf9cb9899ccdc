"""HQQ against rounding to nearest on the objective that it states, and on whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.affine import BITS, AffineGrid
from squeeze.layers.contract import layer_specs, weight_numel
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.hqq import HQQ, P, shrink, solve
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)


def weights(seed: int = 0) -> torch.Tensor:
    """Heavy tails, as trained weights have them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 256, generator=generator) * torch.rand(32, 256, generator=generator).exp() * 0.05


def objectives(weight: torch.Tensor, grid: AffineGrid, group_size: int) -> torch.Tensor:
    """(out_features, groups): sum |W - Q^-1(Q(W))|^p."""
    error = weight - grid.dequantize(grid.quantize(weight), torch.float32)
    return error.reshape(len(weight), -1, group_size).abs().pow(P).sum(-1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group_size", [32, 64, 256])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_the_objective_falls_in_every_group(bits: int, group_size: int, seed: int) -> None:
    weight = weights(seed)
    grid = solve(weight, bits, group_size)
    found = objectives(weight, grid, group_size)
    nearest = objectives(weight, affine.fit(weight, bits, group_size, symmetric=False), group_size)
    assert (found <= nearest * 1.0001).all()
    assert found.sum() < (0.98 if group_size < 256 else 1) * nearest.sum()


def zero_by_hand(group: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The zero point of one group: the authors' iterations one after the other, the best of all that came up."""
    z, beta = -group.min() / scale, 10.0
    tried = [z.round()]
    if bits == 4:
        z = tried[0]
    for _ in range(20):
        tried.append(z)
        stored = z.bfloat16().float()
        codes = (group / scale + stored).round().clamp(0, 2**bits - 1)
        error = group - scale * (codes - stored)
        let_be = error.sign() * (error.abs() - error.abs() ** (P - 1) / beta).clamp(min=0)  # W_e
        z, beta = (codes - (group - let_be) / scale).mean(), 1.01 * beta
    candidates = torch.stack(tried).bfloat16().float()[:, None]
    codes = (group / scale + candidates).round().clamp(0, 2**bits - 1)
    objectives = (group - scale * (codes - candidates)).abs().pow(P).sum(1)
    return candidates[objectives.argmin(), 0]


@pytest.mark.parametrize("bits", [4, 2])
def test_the_zero_points_are_those_of_the_iterations_by_hand(bits: int) -> None:
    weight = 32 * weights()[:8]  # of smaller ones beta lets no error be: all lie below the threshold
    grid = solve(weight, bits, 64)
    expected = [
        [zero_by_hand(group, scale, bits) for group, scale in zip(row.view(-1, 64), scales.float(), strict=True)]
        for row, scales in zip(weight, grid.scales, strict=True)
    ]
    assert grid.zeros is not None
    assert torch.equal(grid.zeros.float(), torch.tensor(expected))


def test_weights_on_a_grid_with_an_offset_are_met_exactly() -> None:
    codes = torch.randint(16, (8, 64), generator=torch.Generator().manual_seed(0))
    codes[:, 0], codes[:, 1] = 0, 15
    weight = 0.5 * codes - 2.875  # a zero point of 5.75
    grid = solve(weight, 4, 64)
    assert torch.equal(grid.zeros, torch.full((8, 1), 5.75, dtype=torch.bfloat16))
    assert torch.equal(grid.dequantize(grid.quantize(weight), torch.float32), weight)


def test_constant_groups_are_kept() -> None:
    weight = torch.tensor([[0.0] * 8 + [0.25] * 8 + [-3.0] * 8])
    grid = solve(weight, 2, 8)
    assert torch.equal(grid.dequantize(grid.quantize(weight), torch.float32), weight)


def test_small_errors_vanish_in_the_threshold_and_large_ones_stay() -> None:
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0])
    kept = 2 - 2 ** (P - 1) / 10
    assert torch.allclose(shrink(x, 10), torch.tensor([-kept, 0, 0, 0, kept]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_of_a_model_gets_its_solution(name: str) -> None:
    subject = HQQ(3, 32).apply(tiny_subject(name), NO_DATA)
    for layer_name, layer in architecture.block_linears(tiny_model(name)).items():
        weight = architecture.weight(layer)
        grid = solve(weight, 3, 32)
        expected = grid.dequantize(grid.quantize(weight), weight.dtype)
        assert torch.equal(subject.model.get_submodule(layer_name).dequantize(), expected)
    assert torch.isfinite(subject.model(TOKEN_IDS)[0]).all()
    assert subject.claims == {"bits": 3, "group_size": 32, "symmetric": False}


@pytest.mark.parametrize("bits", BITS)
def test_zero_points_are_stored_in_16_bits(bits: int, tmp_path: Path) -> None:
    artifact.save(HQQ(bits, 64).apply(tiny_subject("llama", "bfloat16"), NO_DATA), tmp_path)
    layers = [module for module in artifact.load(tmp_path, prepare=False).model.modules() if hasattr(module, "codes")]
    assert len(layers) == 14
    for layer in layers:
        assert layer.zeros.dtype == torch.bfloat16
        assert layer.zeros.shape == layer.scales.shape
        assert 8 * layer.codes.nbytes == bits * weight_numel(layer)


@pytest.mark.parametrize("bits", BITS)
def test_the_kernel_s_layout_holds_the_same_weights(bits: int) -> None:
    model = HQQ(bits, 32).apply(tiny_subject("llama", "bfloat16"), NO_DATA).model
    for name in ("q_proj", "k_proj"):
        layer = model.get_submodule(f"model.layers.0.self_attn.{name}")
        stored = layer.dequantize()
        layer.prepare()
        assert torch.equal(layer.dequantize(), stored)


@pytest.mark.parametrize(
    ("bits", "group_size", "message"),
    [
        (5, 64, "no 5-bit codes; bits that work: 8, 4, 3, 2"),
        (4, 48, "group_size 48 does not divide in_features 64"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(bits: int, group_size: int, message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        HQQ(bits, group_size).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
