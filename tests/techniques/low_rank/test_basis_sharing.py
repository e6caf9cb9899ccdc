"""A basis that blocks share: the errors are those of the theorem, and it is stored, compressed and trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.layers.factors import Factors
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.models.layout import layout
from squeeze.models.subject import Subject
from squeeze.probes.recount import recount
from squeeze.probes.size import stored_tensors
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank import basis_sharing
from squeeze.techniques.low_rank.basis_sharing import BasisSharing
from squeeze.techniques.low_rank.svd import SVD, whitener
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.recover import Recover
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shared(name: str = "llama", dtype: str = "float32", weights_kept: float = 0.5, whitened: bool = True) -> Subject:
    technique = BasisSharing(weights_kept, blocks_each=2, whitened=whitened, damping=0.01)
    return technique.apply(tiny_subject(name, dtype), CalibrationText(TEXT if whitened else TEXT[:0]))


@torch.inference_mode()
def outputs(subject: Subject) -> torch.Tensor:
    return subject.model(TEXT)[0].float()


def twins(subject: Subject) -> dict[str, list[Factors]]:
    """The factors of both blocks by relative name."""
    blocks = [dict(block.named_modules()) for block in architecture.blocks(subject.model)]
    return {name: [block[name] for block in blocks] for name, m in blocks[0].items() if isinstance(m, Factors)}


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_the_error_of_all_blocks_is_the_tail_of_the_singular_values_as_their_inputs_see_it(rank: int) -> None:
    weights = [drawn(16, 24), drawn(16, 24, seed=1)]
    inputs = [drawn(200, 24, seed=seed) @ (drawn(24, 24, seed=4) * torch.logspace(-1, 1, 24)) for seed in (2, 3)]
    hessian = sum(x.T @ x for x in inputs) / 400
    root = whitener(hessian, 0.0)

    def error(basis: torch.Tensor, coefficients: list[torch.Tensor]) -> float:
        assert (basis.shape, [up.shape for up in coefficients]) == ((rank, 24), [(16, rank)] * 2)
        differences = [weight - up @ basis for weight, up in zip(weights, coefficients, strict=True)]
        return float(sum(((d @ hessian) * d).sum() for d in differences))

    whitened = error(*basis_sharing.jointly(weights, rank, root))
    tail = torch.linalg.svdvals(torch.cat(weights) @ root)[rank:].square().sum()
    assert whitened == pytest.approx(float(tail), rel=1e-3)
    assert whitened < error(*basis_sharing.jointly(weights, rank, None))


def test_equal_matrices_share_all_and_a_multiple_is_found() -> None:
    weight = drawn(16, 3) @ drawn(3, 24, seed=1)
    basis, (one, other) = basis_sharing.jointly([weight, -2 * weight], 3, None)
    assert torch.allclose(one @ basis, weight, atol=1e-4)
    assert torch.allclose(other @ basis, -2 * weight, atol=1e-4)
    assert float(basis.norm()) == pytest.approx(float(torch.cat([one, other]).norm()), rel=1e-5)


def test_the_rank_is_the_highest_that_keeps_the_share_of_the_group() -> None:
    rank = basis_sharing.rank_of(2, 192, 576, 0.8)
    assert rank * (576 + 2 * 192) <= 0.8 * 2 * 192 * 576 < (rank + 1) * (576 + 2 * 192)
    assert basis_sharing.rank_of(2, 4, 4, 0.01) == 1
    assert basis_sharing.rank_of(2, 64, 16, 1.0) == 14
    assert basis_sharing.rank_of(4, 4, 64, 1.0) == 12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_basis_is_stored_counted_and_loaded_and_what_reads_heads_and_channels_has_its_own(
    name: str, tmp_path: Path
) -> None:
    subject, dense = shared(name, "bfloat16"), tiny_model(name, "bfloat16")
    where = layout(dense)
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path, prepare=False)
    numbers = 0
    for each in (subject, loaded):
        found = twins(each)
        assert len(found) == len(architecture.block_linears(dense)) // 2
        for path, (one, other) in found.items():
            assert (one.down is other.down) == (path not in (where.output, where.down))
            assert one.up is not other.up
            assert (one.bias is None) == (architecture.bias(architecture.blocks(dense)[0].get_submodule(path)) is None)
    layers = {id(part): part for pair in found.values() for layer in pair for part in (layer.down, layer.up)}
    numbers = sum(part.weight.numel() for part in layers.values())
    weights = sum(architecture.weight(layer).numel() for layer in architecture.block_linears(dense).values())
    assert 0.45 * weights < numbers <= 0.5 * weights
    assert recount(tmp_path, loaded, dense).weights == numbers
    assert count_parameters(loaded.model) == count_parameters(dense) - weights + numbers
    assert sum(t.bytes for t in stored_tensors(tmp_path)) == 2 * count_parameters(loaded.model)
    assert torch.equal(outputs(loaded), outputs(subject))
    assert subject.claims == {"parameters": count_parameters(dense)}


@pytest.mark.parametrize("whitened", [True, False])
def test_of_blocks_that_are_equal_one_basis_says_more_than_two_of_their_own(whitened: bool) -> None:
    def equal() -> Subject:
        subject = tiny_subject("llama")
        first, second = architecture.blocks(subject.model)
        second.load_state_dict(first.state_dict())
        return subject

    text = CalibrationText(TEXT)
    together = BasisSharing(0.5, 2, whitened, 0.01).apply(equal(), text)
    alone = SVD(0.5, whitened, 0.01, sequential=False).apply(equal(), text)
    errors = [float((outputs(each) - outputs(equal())).norm()) for each in (together, alone)]
    assert errors[0] < errors[1]


def test_what_comes_after_rounds_and_trains_the_basis_once(tmp_path: Path) -> None:
    rounded = RoundToNearest(8, None, symmetric=True).apply(shared(), CalibrationText.empty())
    artifact.save(rounded, tmp_path)
    loaded = artifact.load(tmp_path, prepare=False)
    for each in (rounded, loaded):
        one, other = twins(each)["mlp.up_proj"]
        assert type(one.down) is QuantizedLinear
        assert one.down is other.down
    assert torch.equal(outputs(loaded), outputs(rounded))
    assert recount(tmp_path, loaded, tiny_model("llama")).mismatches(rounded.claims) == []
    calibration = CalibrationText(TEXT, load_baseline=lambda: tiny_model("llama"))
    before = twins(shared())["mlp.up_proj"][0].down.weight.clone()
    one, other = twins(Recover("full", 4, 2, 1e-2).apply(shared(), calibration))["mlp.up_proj"]
    assert one.down is other.down
    assert not torch.equal(one.down.weight, before)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (BasisSharing(0.0, 2, False, 0.01), "cannot keep a share of 0.0; expected above 0, at most 1"),
        (BasisSharing(1.5, 2, False, 0.01), "cannot keep a share of 1.5"),
        (BasisSharing(0.5, 3, False, 0.01), "3 blocks cannot share weights in a model of 2"),
    ],
)
def test_what_cannot_be_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        asked.apply(tiny_subject("llama"), CalibrationText.empty())


def test_without_text_nothing_whitens() -> None:
    with pytest.raises(SqueezeError, match="calibration has no tokens"):
        BasisSharing(0.5, 2, True, 0.01).apply(tiny_subject("llama"), CalibrationText.empty())
