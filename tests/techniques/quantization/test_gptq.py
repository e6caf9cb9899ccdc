"""GPTQ against rounding to nearest, against the paper's formulas written out, and on whole models."""

from __future__ import annotations

import pytest
import torch

from squeeze.artifacts.build import resolve_step
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import layer_specs
from squeeze.models import architecture
from squeeze.request.expand import cells
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.hessian import inverse_cholesky
from squeeze.techniques.quantization.gptq import GPTQ
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (6, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


def gptq(**fields) -> GPTQ:
    defaults = {"bits": 4, "group_size": 16, "symmetric": True, "act_order": True, "damping": 0.01, "sequential": True}
    chosen = {**defaults, **fields}
    return GPTQ(**{"static_groups": chosen["act_order"], **chosen})


def problem(outputs: int = 24, inputs: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Hessian of correlated inputs some of whose channels are large."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) * torch.linspace(0.2, 4, inputs).roll(inputs // 2)
    x = torch.randn(512, inputs, generator=generator) @ mixing
    return torch.randn(outputs, inputs, generator=generator), x.T @ x / len(x)


def loss(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    difference = (rounded - weight).double()
    return float(((difference @ hessian.double()) * difference).sum())


def rounded(technique: GPTQ, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    codes, grid = technique.quantize(weight, hessian)
    return grid.dequantize(codes, torch.float32)


def to_nearest(technique: GPTQ, weight: torch.Tensor) -> torch.Tensor:
    grid = affine.fit(weight, technique.bits, technique.group_size or weight.shape[1], technique.symmetric)
    return grid.dequantize(grid.quantize(weight), torch.float32)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("group_size", "symmetric"), [(16, True), (16, False), (None, True), (96, False)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_uncorrelated_inputs_give_rounding_to_nearest(bits, group_size, symmetric, act_order):
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(0))
    technique = gptq(bits=bits, group_size=group_size, symmetric=symmetric, act_order=act_order)
    energies = torch.diag(torch.rand(192, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(rounded(technique, weight, energies), to_nearest(technique, weight))


def test_two_weights_by_hand():
    """Scale 1, zero point 0, codes 0 to 3. Rounding -0.4 to 0 errs by -0.4; as H^-1_01 / H^-1_00 = -0.9, the second
    weight becomes 2.6 - 0.36 = 2.24, and 2 instead of 3.
    """
    weight, hessian = torch.tensor([[-0.4, 2.6]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    codes, grid = gptq(bits=2, group_size=None, symmetric=False, damping=0.0).quantize(weight, hessian)
    assert (grid.scales.item(), grid.zeros.item()) == (1, 0)
    assert codes.tolist() == [[0, 2]]


def test_act_order_takes_the_column_of_most_energy_first():
    """The same two weights; the second comes first and is rounded to 3, and the first can only be 0."""
    weight, hessian = torch.tensor([[-0.4, 2.6]]), torch.tensor([[1.0, 0.9], [0.9, 1.1]])
    codes = {
        order: gptq(bits=2, group_size=None, symmetric=False, act_order=order).quantize(weight, hessian)[0]
        for order in (True, False)
    }
    assert codes[True].tolist() == [[0, 3]]
    assert codes[False].tolist() == [[0, 2]]


def optimal_brain_quantizer(technique: GPTQ, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Eq. 2 and 3 as they stand, in float64: round a column, update all that are left, take it out of the inverse."""
    columns, size = weight.shape[1], technique.group_size
    order = hessian.diagonal().argsort(descending=True) if technique.act_order else torch.arange(columns)
    inverse = torch.linalg.inv((hessian + technique.damping * torch.diag(hessian.diagonal())).double())
    w, result = weight.double().clone(), torch.empty_like(weight)
    for column in order.tolist():
        group = column // size
        if technique.static_groups:
            grid = affine.fit(weight[:, group * size : (group + 1) * size], technique.bits, size, technique.symmetric)
        elif column % size == 0:
            grid = affine.fit(w[:, column : column + size].float(), technique.bits, size, technique.symmetric)
        result[:, column] = grid.dequantize(grid.quantize(w[:, column : column + 1]), torch.float32)[:, 0]
        error = (w[:, column] - result[:, column]) / inverse[column, column]
        w -= error[:, None] * inverse[column]
        inverse -= inverse[:, column, None] * inverse[column] / inverse[column, column]
    return result


@pytest.mark.parametrize(("act_order", "static"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [8, 48, 96])
def test_it_is_the_papers_recursion(group_size, symmetric, act_order, static):
    weight, hessian = problem(8, 192)
    fields = {"bits": 3, "group_size": group_size, "symmetric": symmetric}
    technique = gptq(**fields, act_order=act_order, static_groups=static)
    expected = optimal_brain_quantizer(technique, weight, hessian)
    same = (rounded(technique, weight, hessian) - expected).abs() < 1e-6
    assert same.float().mean() > 0.99  # in float32, a weight half way between two codes may fall to the other side


@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_the_factor_is_that_of_the_inverse(damping):
    _, hessian = problem()
    upper = inverse_cholesky(hessian, damping).double()
    damped = hessian.double() + damping * torch.diag(hessian.diagonal().double())
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(64).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_damping_of_the_mean_adds_the_same_to_all(damping):
    _, hessian = problem()
    hessian[:4] = hessian[:, :4] = 0  # inputs that were always zero
    upper = inverse_cholesky(hessian, damping, "mean").double()
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(64)
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(64).double(), atol=1e-3, rtol=0)
    assert torch.equal(inverse_cholesky(torch.zeros(4, 4), damping, "mean"), torch.eye(4))


def test_the_literal_row_is_the_papers():
    """In its code: columns in order, grids of updated weights, all weights' ranges, 1 % of the mean."""
    (cell,) = cells(["model=tiny_llama", "technique=gptq_paper", "bits=3", "group_size=null"])
    technique = resolve_step(cell.technique["steps"][0])
    literal = {"act_order": False, "static_groups": False, "symmetric": False, "group_size": None}
    assert technique == gptq(bits=3, damping=0.01, damping_of="mean", **literal)
    weight, hessian = problem()
    codes, grid = technique.quantize(weight, hessian)
    inverse = torch.linalg.inv(hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(64))
    w = weight.double().clone()
    for column in range(64):
        nearest = grid.dequantize(grid.quantize(w.float()), torch.float32)[:, column]
        assert (nearest - grid.dequantize(codes, torch.float32)[:, column]).abs().gt(1e-6).float().mean() <= 0.1
        w -= ((w[:, column] - nearest) / inverse[column, column])[:, None] * inverse[column]
        inverse -= inverse[:, column, None] * inverse[column] / inverse[column, column]


def test_the_grid_of_the_libraries_is_used_when_asked_for():
    weight, hessian = problem()
    signed, absmax = (gptq(grid=grid).quantize(weight, hessian)[1] for grid in ("signed", "absmax"))
    assert torch.equal(absmax.scales, affine.fit(weight, 4, 16, True, "absmax").scales)
    assert (signed.scales < 0).any()
    assert (absmax.scales > 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("bits", "share"), [(4, 0.6), (3, 0.7), (2, 0.8)])
def test_outputs_err_less_than_after_rounding_to_nearest(bits, share, seed):
    weight, hessian = problem(seed=seed)
    technique = gptq(bits=bits)
    nearest = loss(weight, to_nearest(technique, weight), hessian)
    assert loss(weight, rounded(technique, weight, hessian), hessian) < share * nearest


@pytest.mark.parametrize("seed", range(3))
def test_act_order_helps_where_few_inputs_have_most_energy(seed):
    weight, hessian = problem(seed=seed)
    scale = torch.ones(64)
    scale[-4:] = 10
    hessian *= scale.outer(scale)
    ordered, plain = (gptq(group_size=None, act_order=order) for order in (True, False))
    in_order = loss(weight, rounded(ordered, weight, hessian), hessian)
    assert in_order < 0.8 * loss(weight, rounded(plain, weight, hessian), hessian)


def test_inputs_that_were_always_zero_have_no_say():
    weight, hessian = problem()
    dead = torch.arange(0, 64, 5)
    hessian[dead, :] = hessian[:, dead] = 0
    technique = gptq()
    assert torch.equal(rounded(technique, weight, hessian)[:, dead], to_nearest(technique, weight)[:, dead])
    assert torch.equal(rounded(technique, weight, torch.zeros(64, 64)), to_nearest(technique, weight))


def test_a_hessian_that_cannot_be_factored_is_named():
    with pytest.raises(SqueezeError, match=r"not positive definite with damping=0\.01"):
        gptq().quantize(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_lose_less_than_by_rounding_to_nearest(name, sequential):
    expected = tiny_model(name)(TOKEN_IDS)[0]
    nearest = tiny_model(name)
    for layer in architecture.block_linears(nearest).values():
        weight = architecture.weight(layer)
        weight.copy_(to_nearest(gptq(bits=3), weight))
    subject = gptq(bits=3, sequential=sequential).apply(tiny_subject(name), CALIBRATION)
    error = (subject.model(TOKEN_IDS)[0] - expected).norm()
    assert error < 0.8 * (nearest(TOKEN_IDS)[0] - expected).norm()
    assert len(layer_specs(subject.model)) == len(architecture.block_linears(tiny_model(name)))
    assert subject.claims["hessian"] == ("sequential" if sequential else "shared")


def test_layers_that_are_solved_together_are_each_what_they_are_alone():
    subject = gptq(sequential=False).apply(tiny_subject("llama"), CALIBRATION)
    model = tiny_model("llama")
    for name, _, inputs in CALIBRATION.input_statistics(model):
        for layer, statistics in inputs.items():
            expected = rounded(gptq(), model.get_submodule(f"{name}.{layer}").weight, statistics.hessian)
            found = subject.model.get_submodule(f"{name}.{layer}").dequantize()
            assert (found - expected).abs().max() < 1e-6


def test_sequential_hessians_see_the_quantized_predecessors():
    both = [gptq(bits=2, sequential=form).apply(tiny_subject("llama"), CALIBRATION).model for form in (True, False)]
    first, second = (
        [
            torch.equal(*(model.get_submodule(f"model.layers.{block}.mlp.{layer}").codes for model in both))
            for layer in ("gate_proj", "down_proj")
        ]
        for block in (0, 1)
    )
    assert first == [True, True]
    assert second == [False, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 5}, "no 5-bit codes; bits that work: 8, 4, 3, 2"),
        ({"group_size": 48}, "group_size 48 does not divide in_features 64"),
        ({"static_groups": False}, "set static_groups: true"),
        ({"damping_of": "all"}, "gptq has no damping of 'all'; expected own or mean"),
        ({"grid": "nf4"}, "gptq has no grid 'nf4'; expected signed or absmax"),
        ({"embed_bits": 3}, "embed_bits is 3; bits that work: 8, 4"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(fields, message):
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        gptq(**fields).apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)
