"""Blocks that share: one tensor in memory and on disk, counted once, and each block's own part fitted to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, matrices
from squeeze.layers.lora import LoraLinear
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.shared import SharedLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.models.tiny import random_model
from squeeze.probes import arithmetic, realised, size
from squeeze.probes.recount import recount
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.svd import SVD
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.awq import AWQ
from squeeze.techniques.quantization.bitsandbytes import LLMInt8
from squeeze.techniques.quantization.gptq import GPTQ
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.sharing import shared_blocks
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from squeeze.techniques.training.lora import LoRA
from squeeze.techniques.training.recover import Recover
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
RTN = RoundToNearest(4, 32, symmetric=True)
WEIGHTS = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128  # of one block of the tiny Llama


def calibration() -> CalibrationText:
    return CalibrationText(TEXT, held_out=TEXT[:1], load_baseline=lambda: tiny_model("llama"))


def shared(name: str = "llama", dtype: str = "float32", **options: Any) -> Subject:
    return SharedBlocks(2, **options).apply(tiny_subject(name, dtype), NO_DATA)


@torch.inference_mode()
def outputs(subject: Subject) -> torch.Tensor:
    return subject.model(TEXT)[0].float()


def pairs(subject: Subject) -> list[tuple[SharedLinear, SharedLinear]]:
    """The layers of the first block with those of the second."""
    blocks = [
        [module for module in block.modules() if isinstance(module, SharedLinear)]
        for block in architecture.blocks(subject.model)
    ]
    return list(zip(*blocks, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_mean_is_shared_and_biases_and_norms_are_each_blocks_own(name: str) -> None:
    dense, subject = tiny_model(name), shared(name)
    originals = [architecture.linears(block) for block in architecture.blocks(dense)]
    made = [dict(block.named_modules()) for block in architecture.blocks(subject.model)]
    for path, *twins in zip(originals[0], originals[0].values(), originals[1].values(), strict=True):
        expected = (architecture.weight(twins[0]) + architecture.weight(twins[1])) / 2
        for block, twin in zip(made, twins, strict=True):
            layer, own = block[path], architecture.bias(twin)
            assert torch.allclose(layer.common.weight, expected, atol=1e-7)
            assert (layer.bias is None) == (own is None)
            assert own is None or torch.equal(layer.bias, own)
    norms = {key: value for key, value in dense.state_dict().items() if "norm" in key.lower() or ".ln_" in key}
    assert norms
    assert all(torch.equal(value, subject.model.state_dict()[key]) for key, value in norms.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_computes_what_a_model_with_equal_weights_in_both_blocks_does(name: str) -> None:
    dense = tiny_subject(name)
    first, second = architecture.blocks(dense.model)
    for path, layer in architecture.linears(first).items():
        twin = second.get_submodule(path)
        both = (architecture.weight(layer) + architecture.weight(twin)) / 2
        architecture.weight(layer).copy_(both)
        architecture.weight(twin).copy_(both)
    assert torch.allclose(outputs(shared(name)), outputs(dense), atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_stored_once_counted_once_and_loaded_shared(name: str, tmp_path: Path) -> None:
    dense, subject = tiny_subject(name, "bfloat16"), shared(name, "bfloat16")
    one_block = sum(
        architecture.weight(layer).numel()
        for layer in architecture.linears(architecture.blocks(dense.model)[0]).values()
    )
    artifact.save(dense, tmp_path / "dense")
    artifact.save(subject, tmp_path / "shared")
    loaded = artifact.load(tmp_path / "shared")
    for each in (subject, loaded):
        for one, other in pairs(each):
            assert one is not other
            assert one.common is other.common
            assert one.common.weight.data_ptr() == other.common.weight.data_ptr()
        assert count_parameters(each.model) == count_parameters(dense.model) - one_block
    stored = [sum(t.bytes for t in size.stored_tensors(tmp_path / which)) for which in ("dense", "shared")]
    assert stored[0] - stored[1] == 2 * one_block
    assert torch.equal(outputs(loaded), outputs(subject))
    assert subject.claims == {"parameters": count_parameters(dense.model)}
    assert size.mismatches(tmp_path / "shared", tmp_path / "dense", count_parameters(loaded.model)) == []


def test_its_bytes_are_fewer_and_what_a_token_reads_is_not(tmp_path: Path) -> None:
    artifact.save(shared(), tmp_path)
    loaded, dense = artifact.load(tmp_path, prepare=False), tiny_model("llama")
    found = recount(tmp_path, loaded, dense)
    assert (found.weights, found.effective_bits, found.mismatches(loaded.claims)) == (WEIGHTS, 32, [])
    assert realised.reread_bytes(loaded.model) == 4 * WEIGHTS
    assert realised.reread_bytes(dense) == 0
    again = sum(realised.weights_by_layer(loaded.model, dense).values())
    assert again == 2 * WEIGHTS, "each block multiplies"
    ran = arithmetic.profiled(loaded.model, realised.low_bit_layers(loaded.model), TEXT[:1])
    assert not realised.computes_less(loaded.model, dense, ran)
    assert realised.arithmetic_mismatches(loaded, False) == []


def test_the_scales_are_those_of_least_squares() -> None:
    original = torch.tensor([[2.0, 4.0], [1.0, 0.0], [3.0, 3.0]])
    common = torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    assert shared_blocks.row_scales(original, common).tolist() == [2.0, 0.5, 1.0]
    scales = shared_blocks.row_scales(original, common)
    least = (original - scales[:, None] * common).square().sum()
    for nudge in (-0.01, 0.01):
        assert (original - (scales + nudge)[:, None] * common).square().sum() > least


def test_scales_and_changes_bring_each_block_nearer_to_what_it_was() -> None:
    originals = architecture.block_linears(tiny_model("gpt2"))

    def distance(**options: Any) -> float:
        errors = [
            (effective(layer) - architecture.weight(originals[path])).square().sum()
            for path, layer in shared("gpt2", **options).model.named_modules()
            if isinstance(layer, SharedLinear)
        ]
        return float(torch.stack(errors).sum())

    plain, scaled = distance(), distance(scales=True)
    assert scaled < plain
    assert distance(rank=8) < plain
    assert distance(scales=True, rank=8) < distance(scales=True, rank=4) < scaled


@torch.inference_mode()
def effective(layer: SharedLinear) -> torch.Tensor:
    """The matrix that a layer multiplies with."""
    units = torch.eye(layer.in_features)
    return (layer(units) - layer(torch.zeros_like(units))).T


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("weights", ["mean", "first"])
def test_changes_of_full_rank_give_the_model_back(weights: Any, scales: bool) -> None:
    subject, dense = tiny_subject("llama"), tiny_subject("llama")
    for block in architecture.blocks(subject.model):  # of one rank, that of the thinnest layer
        assert min(min(layer.weight.shape) for layer in architecture.linears(block).values()) == 32
    for each in (subject, dense):
        for layer in architecture.block_linears(each.model).values():
            architecture.weight(layer)[32:] = 0
    made = SharedBlocks(2, weights=weights, scales=scales, rank=32).apply(subject, NO_DATA)
    assert torch.allclose(outputs(made), outputs(dense), atol=1e-4)


def test_the_first_blocks_weights_cost_it_nothing() -> None:
    dense = architecture.block_linears(tiny_model("llama"))
    for one, other in pairs(shared(weights="first", scales=True, rank=2)):
        assert (one.scaled, one.rank, other.scaled, other.rank) == (False, 0, True, 2)
        assert any(torch.equal(one.common.weight, layer.weight) for layer in list(dense.values())[:7])


@pytest.mark.parametrize(
    "steps",
    [[RTN], [KMeans(4, None)], [GPTQ(4, 32, True, True, True, 0.3, False)], [Wanda(0.5, None, sequential=True), RTN]],
    ids=["rtn", "kmeans", "gptq", "wanda-rtn"],
)
def test_what_comes_after_compresses_the_shared_weight_once(steps: Any, tmp_path: Path) -> None:
    subject = shared(dtype="bfloat16")
    for step in steps:
        subject = step.apply(subject, CalibrationText(TEXT))
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path, prepare=False)
    for each in (subject, loaded):
        for one, other in pairs(each):
            assert one.common is other.common
            assert type(one.common) is type(pairs(subject)[0][0].common) is not torch.nn.Linear
    assert torch.equal(outputs(loaded), outputs(subject))
    found = recount(tmp_path, loaded, tiny_model("llama", "bfloat16"))
    assert (found.weights, found.mismatches(loaded.claims)) == (WEIGHTS, [])
    codes = [tensor.name for tensor in size.stored_tensors(tmp_path) if tensor.name.endswith(".codes")]
    assert len(codes) == 7


def test_training_keeps_what_is_shared_and_an_adapter_beside_it_is_one(tmp_path: Path) -> None:
    how: Any = {"training_steps": 8, "windows": 2, "learning_rate": 1e-2}
    before = [pair[0].common.weight.clone() for pair in pairs(shared())]
    trained = Recover("full", **how).apply(shared(rank=4, scales=True), calibration())
    assert trained.claims["trainable_parameters"] == WEIGHTS + 2 * 4 * (4 * 128 + 3 * 192 - 2 * 32)
    for (one, other), weight in zip(pairs(trained), before, strict=True):
        assert one.common is other.common
        assert not torch.equal(one.common.weight, weight)
    beside = Recover("lora", rank=4, lora_alpha=8, **how).apply(RTN.apply(shared(), NO_DATA), calibration())
    artifact.save(beside, tmp_path)
    loaded = artifact.load(tmp_path, prepare=False)
    for each in (beside, loaded):
        for one, other in pairs(each):
            assert one.common is other.common
            assert type(one.common) is LoraLinear
    assert torch.equal(outputs(loaded), outputs(beside))


def test_what_was_rounded_is_shared_as_floats_and_claims_no_bits(tmp_path: Path) -> None:
    rounded = RTN.apply(tiny_subject("llama"), NO_DATA)
    subject = SharedBlocks(2).apply(rounded, NO_DATA)
    assert not any(isinstance(layer, QuantizedLinear) for _, layer in matrices(subject.model))
    assert subject.claims == {"parameters": count_parameters(tiny_model("llama"))}
    artifact.save(subject, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path)), outputs(subject))


def test_generation_keeps_a_cache_for_each_block() -> None:
    subject = shared()
    attentions = [block.self_attn.layer_idx for block in subject.model.model.layers]
    assert attentions == [0, 1]
    with torch.inference_mode():
        whole = subject.model(TEXT).logits[:, -1]
        cached = subject.model(TEXT[:, :-1], use_cache=True).past_key_values
        step = subject.model(TEXT[:, -1:], past_key_values=cached).logits[:, -1]
    assert torch.allclose(step, whole, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "asked", "said"),
    [
        (lambda: tiny_subject("llama"), SharedBlocks(3), "3 blocks cannot share weights in a model of 2"),
        (lambda: tiny_subject("llama"), SharedBlocks(1), "1 blocks cannot share"),
        (lambda: tiny_subject("llama"), SharedBlocks(2, weights="last"), "no weights 'last'; expected 'mean' or"),  # type: ignore[arg-type]
        (lambda: tiny_subject("llama"), SharedBlocks(2, rank=33), "rank is 33, but .*k_proj has one of 1 to 32"),
        (shared, SharedBlocks(2), "is a SharedLinear, made of several layers"),
        (
            lambda: SVD(0.5, whitened=False, damping=0.01, sequential=False).apply(tiny_subject("llama"), NO_DATA),
            SharedBlocks(2),
            "is a Factors, made of several layers",
        ),
        (shared, AWQ(4, 32, True, clip=False), "SharedLinear, into which no scales fold"),
        (lambda: shared(dtype="bfloat16"), LLMInt8(6.0), "bitsandbytes has plain layers alone"),
        (
            shared,
            LoRA(2, 2, False, False, "kaiming", "linear", "next_token", False, 1, 1, 1e-3),
            "blocks share layers, of which peft adapts one place",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(make: Any, asked: Any, said: str) -> None:
    subject = make()
    before = dict(subject.model.named_modules())
    with pytest.raises(Unsupported, match=said):
        asked.apply(subject, CalibrationText(TEXT))
    assert dict(subject.model.named_modules()) == before


def test_blocks_left_over_share_among_themselves_or_stay() -> None:
    subject = tiny_subject("llama")
    model = random_model("llama", 0, "causal_lm")
    model.model.layers.extend([random_model("llama", seed, "causal_lm").model.layers[0] for seed in (1, 2, 3)])
    made = SharedBlocks(2).apply(Subject(model, subject.tokenizer), NO_DATA)
    layers = [block.mlp.up_proj for block in made.model.model.layers]
    assert layers[0].common is layers[1].common
    assert layers[2].common is layers[3].common
    assert layers[1].common is not layers[2].common
    assert type(layers[4]) is torch.nn.Linear
