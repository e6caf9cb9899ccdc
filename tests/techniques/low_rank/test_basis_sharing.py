"""Neighbours share a basis: the best one of its rank for all of them together, stored once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.layers.factors import Factors
from squeeze.models import architecture
from squeeze.models.layout import layout
from squeeze.models.subject import Subject
from squeeze.probes import kept, size
from squeeze.probes.recount import recount
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.basis_sharing import BasisSharing
from squeeze.techniques.low_rank.factorisation import rank_of
from squeeze.techniques.low_rank.svd import SVD
from squeeze.techniques.quantization.gptq import GPTQ
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TEXT = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))
TOKENS = torch.arange(24).reshape(2, 12)
PLAIN = BasisSharing(0.5, whitened=False)


def places(model: nn.Module, name: str) -> list[Factors]:
    """The factors of this relative name in each block."""
    return [block.get_submodule(name) for block in architecture.blocks(model)]


def product(made: Factors) -> torch.Tensor:
    return architecture.weight(made.up) @ architecture.weight(made.down)


def shared(name: str, dtype: str = "float32") -> Subject:
    return BasisSharing(0.5).apply(tiny_subject(name, dtype), TEXT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_neighbours_share_the_basis_but_where_they_write(name: str) -> None:
    before, subject = tiny_model(name), shared(name)
    where = layout(before)
    for place, layer in architecture.linears(architecture.blocks(before)[0]).items():
        first, second = places(subject.model, place)
        rows, columns = architecture.shape(layer)
        writes = place in (where.output, where.down)
        assert (first.down is second.down) is not writes
        assert first.up is not second.up
        assert first.rank == second.rank == rank_of(rows if writes else 2 * rows, columns, 0.5)
        for block, made in enumerate((first, second)):
            original = architecture.blocks(before)[block].get_submodule(place)
            bias = architecture.bias(original)
            assert made.bias is None if bias is None else torch.equal(made.bias, bias)


def test_the_plain_error_is_the_tail_of_the_stacked_singular_values() -> None:
    before = tiny_model("llama")
    model = PLAIN.apply(tiny_subject("llama"), NO_DATA).model
    weights = [block.mlp.up_proj.weight for block in architecture.blocks(before)]
    made = places(model, "mlp.up_proj")
    error = sum(float((weight - product(each)).square().sum()) for weight, each in zip(weights, made, strict=True))
    tail = torch.linalg.svdvals(torch.cat(weights))[made[0].rank :].square().sum()
    assert error == pytest.approx(float(tail), rel=1e-4)


def test_the_whitened_basis_is_that_of_the_formula() -> None:
    """Written down in float64: S of the mean Hessian of both blocks, the SVD of [W_1; W_2] S."""
    before = tiny_model("llama")
    hessians = [inputs["mlp.up_proj"].hessian.double() for *_, inputs in TEXT.input_statistics(before)]
    mean = (hessians[0] + hessians[1]) / 2
    root = torch.linalg.cholesky(mean + 0.01 * torch.diag(mean.diagonal()))
    stacked = torch.cat([block.mlp.up_proj.weight.double() for block in architecture.blocks(before)])
    first, second = places(shared("llama").model, "mlp.up_proj")
    left, values, right = torch.linalg.svd(stacked @ root, full_matrices=False)
    rank = first.rank
    best = left[:, :rank] * values[:rank] @ right[:rank] @ root.inverse()
    found = torch.cat([product(first), product(second)]).double()
    assert torch.allclose(found, best, atol=1e-4 * float(best.abs().max()))


def test_each_writer_is_what_svd_makes_of_it() -> None:
    alone = SVD(0.5, whitened=True, damping=0.01, sequential=False).apply(tiny_subject("llama"), TEXT).model
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        for expected, found in zip(places(alone, name), places(shared("llama").model, name), strict=True):
            assert torch.allclose(product(found), product(expected), atol=1e-6)


def test_equal_neighbours_lose_what_one_alone_loses_at_that_rank() -> None:
    """Two blocks of the same weights cost one basis and two coefficients, and have a higher rank for it."""
    subject = tiny_subject("llama")
    first, second = architecture.blocks(subject.model)
    second.load_state_dict(first.state_dict())
    weight = first.mlp.up_proj.weight.clone()
    made = places(PLAIN.apply(subject, NO_DATA).model, "mlp.up_proj")
    assert made[0].rank > rank_of(*weight.shape, 0.5)
    assert torch.allclose(product(made[0]), product(made[1]), atol=1e-6)
    tail = torch.linalg.svdvals(weight)[made[0].rank :].square().sum()
    assert float((weight - product(made[0])).square().sum()) == pytest.approx(float(tail), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_basis_is_stored_once_and_one_after_loading(name: str, tmp_path: Path) -> None:
    before, subject = tiny_model(name), shared(name)
    where = layout(before)
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path)
    expected = 0
    for place, layer in architecture.linears(architecture.blocks(before)[0]).items():
        first, second = places(loaded.model, place)
        rows, columns = architecture.shape(layer)
        writes = place in (where.output, where.down)
        assert (first.down is second.down) is not writes
        expected += first.rank * (2 * rows + (2 if writes else 1) * columns) - 2 * rows * columns
    assert torch.equal(loaded.model(TOKENS)[0], subject.model(TOKENS)[0])
    assert count_parameters(loaded.model) == count_parameters(before) + expected
    stored = sum(tensor.bytes for tensor in size.stored_tensors(tmp_path))
    assert stored == 4 * count_parameters(loaded.model)
    counted = recount(tmp_path, artifact.load(tmp_path, prepare=False), before)
    assert counted.mismatches(loaded.claims) == kept.unshared(loaded.model, loaded.claims) == []


def test_a_quantized_basis_stays_one(tmp_path: Path) -> None:
    both = RoundToNearest(4, None, True).apply(shared("llama"), NO_DATA)
    artifact.save(both, tmp_path)
    for model in (both.model, artifact.load(tmp_path).model):
        first, second = places(model, "mlp.up_proj")
        assert type(first.down).__name__ == "QuantizedLinear"
        assert first.down is second.down
        assert first.up is not second.up


def test_what_cannot_be_shared_is_refused() -> None:
    for technique, message in (
        (BasisSharing(0.0), "share of 0.0; expected more than 0"),
        (BasisSharing(0.5, blocks_each=1), "blocks_each is 1, expected at least 2"),
    ):
        with pytest.raises(Unsupported, match=message):
            technique.apply(tiny_subject("llama"), TEXT)
    with pytest.raises(SqueezeError, match="no tokens"):
        BasisSharing(0.5).apply(tiny_subject("llama"), NO_DATA)
    with pytest.raises(Unsupported, match="blocks share layers"):
        PLAIN.apply(PLAIN.apply(tiny_subject("llama"), NO_DATA), NO_DATA)
    gptq = GPTQ(4, None, True, act_order=False, static_groups=True, damping=0.01, sequential=True)
    with pytest.raises(Unsupported, match="is the same layer as"):
        gptq.apply(shared("llama"), TEXT)
