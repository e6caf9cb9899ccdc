"""Neighbouring blocks use one set of matrices: stored once, counted once, and one whatever later steps make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, distinct_share, is_compressed, live_bytes
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import kept, size
from squeeze.probes.realised import reread_bytes
from squeeze.probes.recount import recount
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Technique
from squeeze.techniques.low_rank.lqer import LQER
from squeeze.techniques.low_rank.svd import SVD
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.gptq import GPTQ
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from squeeze.techniques.training.recover import Recover
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKENS = torch.arange(24).reshape(2, 12)
RTN = RoundToNearest(4, 32, True)
THIN = SVD(0.5, whitened=False, damping=0.01, sequential=False)
CALIBRATED = (
    Wanda(0.5, None, sequential=False),
    GPTQ(4, 32, True, act_order=False, static_groups=True, damping=0.01, sequential=True),
)


def text(model: nn.Module) -> CalibrationText:
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    return CalibrationText(tokens, load_baseline=lambda: model)


def shared(name: str, dtype: str = "float32") -> Subject:
    return SharedBlocks().apply(tiny_subject(name, dtype), NO_DATA)


def pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The matrices of the first block and those of the second, place by place."""
    first, second = (dict(matrices_below(block)) for block in architecture.blocks(model))
    assert first.keys() == second.keys()
    return [(first[name], second[name]) for name in first]


def matrices_below(block: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Linear, *map(type, architecture.linears(block).values()))
    modules = block.named_modules()
    return [(name, module) for name, module in modules if is_compressed(module) or isinstance(module, kinds)]


def all_one(model: nn.Module) -> bool:
    found = pairs(model)
    return len(found) > 0 and all(first is second for first, second in found)


@pytest.mark.parametrize("weights", ["mean", "first"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_blocks_multiply_with_the_mean_or_the_first_of_both(name: str, weights: str) -> None:
    before, subject = tiny_model(name), tiny_subject(name)
    share = {"mean": 0.5, "first": 1.0}[weights]
    SharedBlocks(2, weights).apply(subject, NO_DATA)
    first, second = (architecture.linears(block) for block in architecture.blocks(before))
    for block in architecture.blocks(subject.model):
        layers = architecture.linears(block)
        assert layers.keys() == first.keys()
        for place, layer in layers.items():
            for own in (architecture.weight, architecture.bias):
                one, other, found = own(first[place]), own(second[place]), own(layer)
                if one is None:
                    assert found is None
                else:
                    assert torch.allclose(found, share * one + (1 - share) * other, atol=1e-7)
    assert all_one(subject.model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_and_places_in_the_cache_stay_each_blocks_own(name: str) -> None:
    before, model = tiny_model(name), shared(name).model
    linear = {f"{layer}.{part}" for layer in architecture.block_linears(model) for part in ("weight", "bias")}
    own, expected = model.state_dict(), before.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[each], tensor) for each, tensor in expected.items() if each not in linear)
    numbers = [
        module.layer_idx
        for block in architecture.blocks(model)
        for module in block.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
    ]
    assert sorted(set(numbers)) in ([0, 1], [])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_shared_is_stored_once_and_one_after_loading(name: str, tmp_path: Path) -> None:
    before, subject = tiny_subject(name), shared(name)
    artifact.save(before, tmp_path / "before")
    artifact.save(subject, tmp_path / "shared")
    one_block = sum(
        tensor.numel()
        for layer in architecture.linears(architecture.blocks(before.model)[1]).values()
        for tensor in layer.parameters()
    )
    stored = [sum(each.bytes for each in size.stored_tensors(tmp_path / each)) for each in ("before", "shared")]
    assert stored[0] - stored[1] == 4 * one_block
    loaded = artifact.load(tmp_path / "shared")
    assert all_one(loaded.model)
    assert torch.equal(loaded.model(TOKENS)[0], subject.model(TOKENS)[0])
    whole = count_parameters(before.model)
    for model in (subject.model, loaded.model):
        assert count_parameters(model) == whole - one_block
        assert live_bytes(before.model) - live_bytes(model) == 4 * one_block
    assert loaded.claims["parameters"] == whole


def test_the_claim_is_what_detectors_count(tmp_path: Path) -> None:
    subject, dense = shared("llama"), tiny_model("llama")
    assert subject.claims["weights_kept"] == 0.5
    artifact.save(subject, tmp_path)
    stored = artifact.load(tmp_path, prepare=False)
    counted = recount(tmp_path, stored, dense)
    assert counted.effective_bits == 32  # of what is there: sharing leaves fewer weights, none of fewer bits
    assert counted.mismatches(stored.claims) == kept.unshared(stored.model, stored.claims) == []
    (lie,) = kept.unshared(dense, stored.claims)
    assert lie == "claimed 50.0% of the blocks' weights, stored once each, found 100.0%"


def test_the_last_group_may_have_fewer() -> None:
    subject = tiny_subject("llama")
    blocks = subject.model.model.layers
    blocks.append(tiny_model("llama", seed=1).model.layers[0])
    SharedBlocks().apply(subject, NO_DATA)
    first, second, third = (dict(architecture.linears(block)) for block in blocks)
    assert first == second
    assert not set(third.values()) & set(first.values())
    assert subject.model.model.layers is blocks
    assert distinct_share(subject.model) == 2 / 3


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("step", [RTN, Magnitude(0.5), THIN], ids=lambda step: type(step).__name__)
def test_later_steps_compress_what_is_shared_once(step: Technique, name: str, tmp_path: Path) -> None:
    alone = step.apply(tiny_subject(name), NO_DATA)
    both = step.apply(shared(name), NO_DATA)
    assert all_one(both.model)
    artifact.save(alone, tmp_path / "alone")
    artifact.save(both, tmp_path / "both")
    sizes = [sum(tensor.bytes for tensor in size.stored_tensors(tmp_path / each)) for each in ("alone", "both")]
    assert sizes[1] < sizes[0]
    loaded = artifact.load(tmp_path / "both", prepare=False)
    assert all_one(loaded.model)
    assert torch.equal(loaded.model(TOKENS)[0], both.model(TOKENS)[0])
    assert kept.unshared(loaded.model, loaded.claims) == []
    assert recount(tmp_path / "both", loaded, tiny_model(name)).mismatches(loaded.claims) == []


@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_training_changes_what_is_shared_as_one(name: str, how: str, tmp_path: Path) -> None:
    subject = shared(name)
    layer = pairs(subject.model)[0][0]
    before = architecture.weight(layer).clone()
    recover = Recover(how, training_steps=2, windows=1, learning_rate=1e-2, rank=2, lora_alpha=4)
    trained = recover.apply(subject, text(tiny_model(name)))
    assert all_one(trained.model)
    assert not torch.equal(architecture.weight(pairs(trained.model)[0][0]), before)
    artifact.save(trained, tmp_path)
    assert all_one(artifact.load(tmp_path).model)


def test_changes_beside_what_is_shared_are_each_blocks_own(tmp_path: Path) -> None:
    """[shared_blocks, rtn, lqer]: the two blocks come nearer to what they were, each to its own."""
    original = tiny_model("llama")
    subject = LQER(rank=16, scaled=False, sequential=False).apply(RTN.apply(shared("llama"), NO_DATA), text(original))
    first, second = (block.mlp.up_proj for block in architecture.blocks(subject.model))
    assert first is not second
    assert first.base is second.base
    for number, layer in enumerate((first, second)):
        exact = original.model.layers[number].mlp.up_proj.weight
        assert (layer.dequantize() - exact).norm() < (layer.base.dequantize() - exact).norm()
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path, prepare=False)
    ups = [block.mlp.up_proj for block in architecture.blocks(loaded.model)]
    assert ups[0].base is ups[1].base
    assert torch.equal(loaded.model(TOKENS)[0], subject.model(TOKENS)[0])


@pytest.mark.parametrize("step", CALIBRATED, ids=lambda step: type(step).__name__)
def test_steps_that_look_at_the_inputs_of_one_place_are_refused(step: Technique) -> None:
    subject = shared("llama")
    with pytest.raises(Unsupported, match=r"layers\.1\.\S+ is the same layer as \S+layers\.0\."):
        step.apply(subject, text(tiny_model("llama")))


def test_a_block_that_shared_and_is_left_alone_shares_nothing() -> None:
    dropped = LayerDrop(0.5, "every_other").apply(shared("llama"), NO_DATA)
    assert (dropped.claims["layers_kept"], dropped.claims["weights_kept"]) == (0.5, 1.0)
    assert kept.unshared(dropped.model, dropped.claims) == []


def test_what_is_shared_is_not_exported(tmp_path: Path) -> None:
    artifact.save(RTN.apply(shared("llama"), NO_DATA), tmp_path / "artifact")
    with pytest.raises(Unsupported, match="shared with another place"):
        to_compressed_tensors(tmp_path / "artifact", tmp_path / "export")


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (SharedBlocks(1), "blocks_each is 1, expected at least 2"),
        (SharedBlocks(2, "last"), "no weights 'last'; expected mean or first"),  # type: ignore[arg-type]
    ],
)
def test_other_requests_are_refused(technique: SharedBlocks, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        technique.apply(tiny_subject("llama"), NO_DATA)


def test_blocks_that_differ_and_factors_are_refused() -> None:
    subject = tiny_subject("llama")
    subject.model.model.layers[1].mlp.up_proj = nn.Linear(64, 8, bias=False)
    with pytest.raises(Unsupported, match=r"layers.1.mlp.up_proj is 8 x 64, in model.layers.0 it is \d+ x 64"):
        SharedBlocks().apply(subject, NO_DATA)
    factorised = THIN.apply(tiny_subject("llama"), NO_DATA)
    with pytest.raises(Unsupported, match="is a Factors, expected one matrix"):
        SharedBlocks().apply(factorised, NO_DATA)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_matrix_has_its_bits_once_and_is_read_in_every_place(name: str, tmp_path: Path) -> None:
    subject, dense = shared(name, "bfloat16"), tiny_model(name, "bfloat16")
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path)
    counted = recount(tmp_path, loaded, dense)
    first = architecture.linears(architecture.blocks(dense)[0]).values()
    assert counted.effective_bits == 16
    assert counted.weights == sum(architecture.weight(layer).numel() for layer in first)
    biases = [bias for layer in first if (bias := architecture.bias(layer)) is not None]
    assert reread_bytes(loaded.model) == 2 * (counted.weights + sum(bias.numel() for bias in biases))
    assert reread_bytes(dense) == 0


def test_packed_it_has_the_bits_of_its_codes(tmp_path: Path) -> None:
    artifact.save(RTN.apply(shared("llama"), NO_DATA), tmp_path)
    stored = artifact.load(tmp_path, prepare=False)
    assert 4 < recount(tmp_path, stored, tiny_model("llama")).effective_bits <= 5
    assert recount(tmp_path, stored, tiny_model("llama")).compressed_share == 1
