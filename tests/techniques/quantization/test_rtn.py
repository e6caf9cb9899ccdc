"""Round to nearest on whole models: equal to the model with rounded weights, and of the size that its bits say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.affine import BITS
from squeeze.layers.contract import layer_specs, weight_numel
from squeeze.models import architecture
from squeeze.probes.recount import recount
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)


def rounded(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> torch.Tensor:
    """The formula, group by group, in plain Python."""
    result = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group_size):
            group = weight[row, start : start + group_size].float()
            if symmetric:
                low, high, zero = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.0
                scale = group[group.abs().argmax()] / low
            else:
                low, high = 0, 2**bits - 1
                bottom, top = min(float(group.min()), 0.0), max(float(group.max()), 0.0)
                scale = torch.tensor((top - bottom) / high)
            scale = scale.to(torch.bfloat16).float()
            if not symmetric:
                zero = float(torch.round(-torch.tensor(bottom) / scale))
            codes = (torch.round(group / scale) + zero).clamp(low, high)
            result[row, start : start + group_size] = scale * (codes - zero)
    return result


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (16, False), (None, True), (None, False)])
@pytest.mark.parametrize("bits", BITS)
def test_logits_are_those_of_the_rounded_float_model(
    name: str, bits: int, group_size: int | None, symmetric: bool
) -> None:
    expected = tiny_model(name)
    for layer in architecture.block_linears(expected).values():
        weight = architecture.weight(layer)
        weight.copy_(rounded(weight, bits, group_size or weight.shape[1], symmetric))
    subject = RoundToNearest(bits, group_size, symmetric).apply(tiny_subject(name), NO_DATA)
    assert torch.allclose(subject.model(TOKEN_IDS)[0], expected(TOKEN_IDS)[0], atol=1e-4)
    assert subject.claims == {"bits": bits, "group_size": group_size, "symmetric": symmetric}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_that_are_left_out_change_bytes_and_nothing_else(name: str, symmetric: bool, tmp_path: Path) -> None:
    pruned = Magnitude(0.5)
    with_codes = RoundToNearest(4, 32, symmetric).apply(pruned.apply(tiny_subject(name), NO_DATA), NO_DATA)
    fewer = RoundToNearest(4, 32, symmetric, zeros_left_out=True)
    without = fewer.apply(pruned.apply(tiny_subject(name), NO_DATA), NO_DATA)
    assert torch.equal(without.model(TOKEN_IDS)[0], with_codes.model(TOKEN_IDS)[0])
    assert without.claims == with_codes.claims
    for subject, folder in ((with_codes, "codes"), (without, "mask")):
        artifact.save(subject, tmp_path / folder)
    baseline = tiny_model(name)
    kept, left = (
        recount(tmp_path / folder, artifact.load(tmp_path / folder, prepare=False), baseline)
        for folder in ("codes", "mask")
    )
    assert kept.sparsity == left.sparsity >= 0.5
    assert left.effective_bits == pytest.approx(kept.effective_bits - 4 + 1 + 4 * (1 - left.sparsity), abs=0.05)
    assert left.mismatches(without.claims) == []


@pytest.mark.parametrize("bits", BITS)
def test_stored_bits_are_the_bits(bits: int, tmp_path: Path) -> None:
    artifact.save(RoundToNearest(bits, 64, False).apply(tiny_subject("llama", "bfloat16"), NO_DATA), tmp_path)
    layers = [module for module in artifact.load(tmp_path, prepare=False).model.modules() if hasattr(module, "codes")]
    assert len(layers) == 14
    for layer in layers:
        weights = weight_numel(layer)
        assert 8 * layer.codes.nbytes == bits * weights
        assert 8 * layer.scales.nbytes == 16 * weights // 64
        assert layer.zeros.nbytes == layer.out_features * -(-(layer.in_features // 64) * bits // 8)


def test_embeddings_head_and_norms_stay() -> None:
    original, subject = tiny_model("gpt2"), RoundToNearest(4, 32, True).apply(tiny_subject("gpt2"), NO_DATA)
    left = dict(subject.model.named_parameters())
    assert {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"} <= left.keys()
    for name, parameter in left.items():
        assert torch.equal(parameter, original.get_parameter(name))


def test_fewer_bits_lose_more() -> None:
    expected = tiny_model("llama")(TOKEN_IDS)[0]
    errors = [
        float(
            (RoundToNearest(bits, 32, True).apply(tiny_subject("llama"), NO_DATA).model(TOKEN_IDS)[0] - expected).norm()
        )
        for bits in BITS
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.05 * float(expected.norm())


@pytest.mark.parametrize("bits", [1, 5, 16])
def test_other_bits_are_refused_before_any_work(bits: int) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=f"no {bits}-bit codes; bits that work: 8, 4, 3, 2"):
        RoundToNearest(bits, 64, True).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)


def test_a_group_size_that_does_not_divide_is_refused_before_any_work() -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match="group_size 48 does not divide in_features 64"):
        RoundToNearest(4, 48, True).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
