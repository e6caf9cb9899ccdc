"""Cuts: what stays is what it was, the configuration describes it, and keys and values find their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.models.layout import head_groups, layout, sizes
from squeeze.models.subject import Subject
from squeeze.models.surgery import cut_channels, cut_heads, highest, keep_blocks, keep_channels, keep_heads
from squeeze.models.tiny import byte_tokenizer
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.causal import random_causal
from tests.students import TOKEN_IDS, loads_alone, outputs, silence, subject_of
from tests.tiny import ARCHITECTURES, CAUSAL, tiny_model, tiny_subject

LIKE_LLAMA = ("mistral", "qwen2", "qwen3")
HALF = [range(0, 128, 2), range(64)]  # of the channels of two blocks

Cut = Callable[[nn.Module], None]
EVERYTHING: dict[str, Cut] = {
    "blocks": lambda model: keep_blocks(model, range(2)),
    "channels": lambda model: keep_channels(model, [range(128)] * 2),
    "heads": lambda model: keep_heads(model, [range(head_groups(model))] * 2),
}


@pytest.mark.parametrize("cut", EVERYTHING.values(), ids=EVERYTHING)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cut_that_keeps_everything_changes_nothing(name: str, cut: Cut) -> None:
    model = tiny_model(name)
    cut(model)
    assert torch.equal(outputs(model), outputs(tiny_model(name)))
    assert model.config.to_dict() == tiny_model(name).config.to_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_that_stay_are_those_named_in_their_order(name: str) -> None:
    model = subject_of(name, layers=4).model
    before = architecture.blocks(model)
    keep_blocks(model, [1, 3])
    assert architecture.blocks(model) == [before[1], before[3]]
    assert model.config.num_hidden_layers == 2
    numbers = [getattr(module, "layer_idx", None) for block in before[1::2] for module in block.modules()]
    assert [number for number in numbers if number is not None] == [0, 1]


@pytest.mark.parametrize("name", CAUSAL)
def test_blocks_that_do_nothing_are_missed_by_nobody(name: str) -> None:
    model = subject_of(name, layers=4).model
    silence(model, 0, 2)
    expected = outputs(model)
    keep_blocks(model, [1, 3])
    assert torch.equal(outputs(model), expected)
    keep_blocks(model, [1])
    assert not torch.allclose(outputs(model), expected, atol=1e-2)


@pytest.mark.parametrize("name", CAUSAL)
@torch.inference_mode()
def test_a_key_value_cache_gives_what_one_forward_gives(name: str) -> None:
    model = subject_of(name, layers=4).model
    keep_blocks(model, [1, 3])
    expected = outputs(model)
    first = model(TOKEN_IDS[:, :6], use_cache=True)
    found, cache = [first.logits], first.past_key_values
    for place in range(6, 12):
        step = model(TOKEN_IDS[:, place : place + 1], past_key_values=cache, use_cache=True)
        found.append(step.logits)
    assert len(cache.layers) == 2
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_left_loads_without_squeeze(name: str, tmp_path: Path) -> None:
    subject = subject_of(name, layers=3)
    keep_blocks(subject.model, [0, 2])
    keep_channels(subject.model, HALF)
    assert sizes(loads_alone(subject, tmp_path, name)).channels == 64


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_that_nobody_reads_are_cut_without_a_trace(name: str) -> None:
    model = tiny_model(name)
    for block, kept in zip(architecture.blocks(model), HALF, strict=True):
        cut = sorted({*range(128)} - {*kept})
        architecture.weight(block.get_submodule(layout(model).down))[:, cut] = 0
    expected = outputs(model)
    keep_channels(model, HALF)
    torch.testing.assert_close(outputs(model), expected, atol=1e-5, rtol=1e-5)
    assert getattr(model.config, layout(model).channels) == 64
    keep_channels(model, [range(32)] * 2)
    assert not torch.allclose(outputs(model), expected, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", *LIKE_LLAMA])
def test_heads_that_nobody_reads_are_cut_without_a_trace(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama") if name == "llama" else random_causal(name)
    for block, cut in zip(architecture.blocks(model), (0, 1), strict=True):
        architecture.weight(block.self_attn.o_proj)[:, 32 * cut : 32 * (cut + 1)] = 0  # two heads of 16 channels
    expected = outputs(model)
    keep_heads(model, [[1], [0]])
    torch.testing.assert_close(outputs(model), expected, atol=1e-5, rtol=1e-5)
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 16)
    assert sizes(loads_alone(Subject(model, byte_tokenizer()), tmp_path, "llama")).attention == 32


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "bert"])
def test_heads_are_kept_where_no_configuration_says_how_large_one_is(name: str) -> None:
    model = tiny_model(name)
    with pytest.raises(Unsupported, match=r"with 2 of 4 heads it would not load; keep all heads"):
        keep_heads(model, [[0, 1], [0, 1]])
    assert torch.equal(outputs(model), outputs(tiny_model(name)))


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_blocks_may_lose_different_heads_and_channels(name: str) -> None:
    """What is cut gives nothing, so it is missed by nobody; the configuration says what it said."""
    model = subject_of(name, **({"num_key_value_heads": 4} if name == "llama" else {})).model
    said, where = model.config.to_dict(), layout(model)
    heads, channels = [[2], [0, 1, 3]], [range(5, 128, 3), range(64)]
    for block, groups, kept in zip(architecture.blocks(model), heads, channels, strict=True):
        gone = [16 * group + place for group in {*range(4)} - {*groups} for place in range(16)]
        architecture.weight(block.get_submodule(where.output))[:, gone] = 0
        architecture.weight(block.get_submodule(where.down))[:, sorted({*range(128)} - {*kept})] = 0
    expected = outputs(model)
    cut_heads(model, heads)
    cut_channels(model, channels)
    torch.testing.assert_close(outputs(model), expected, atol=1e-5, rtol=1e-5)
    assert model.config.to_dict() == said
    if name in CAUSAL:
        first = model(TOKEN_IDS[:, :6], use_cache=True)
        rest = model(TOKEN_IDS[:, 6:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(torch.cat([first.logits, rest], dim=1), expected, atol=1e-4, rtol=1e-4)
    cut_heads(model, [[0], [1]])
    assert not torch.allclose(outputs(model), expected, atol=1e-3)


def test_blocks_that_differ_are_not_cut_to_one_number() -> None:
    model = tiny_model("llama")
    cut_channels(model, HALF)
    cut_channels(model, [range(64), range(8)])
    with pytest.raises(Unsupported, match=r"mlp.down_proj has 8 inputs in one block and 64 in another"):
        keep_channels(model, [range(8)] * 2)
    with pytest.raises(Unsupported, match="expected one number of all"):
        keep_heads(model, [[0], [0]])


def test_blocks_of_their_own_sizes_are_dropped_before_they_are_cut() -> None:
    model = subject_of("gpt2", layers=3).model
    cut_heads(model, [[0, 1]] * 3)
    with pytest.raises(Unsupported, match=r"block 0 has sizes of its own \(attn.c_attn.bias\), .*; drop blocks before"):
        keep_blocks(model, [0, 2])
    assert len(architecture.blocks(model)) == model.config.num_hidden_layers == 3


def test_heads_that_transformers_would_refuse_are_refused_first() -> None:
    model = subject_of("llama", num_key_value_heads=4).model
    with pytest.raises(Unsupported, match=r"3 heads do not divide a hidden size of 64, .* that do: 1, 2, 4"):
        keep_heads(model, [[0, 1, 2], [0, 1, 2]])


@pytest.mark.parametrize("indices", [[], [2], [-1, 0], [1, 0], [0, 0]])
def test_indices_that_make_no_sense_are_refused(indices: list[int]) -> None:
    with pytest.raises(SqueezeError, match="expected at least one of 0 to 1, ascending, each once"):
        keep_blocks(tiny_model("llama"), indices)


@pytest.mark.parametrize("lists", [[range(64)], [range(64), range(32)], [range(64), range(100, 164)]])
def test_every_block_keeps_as_many_channels_as_the_others(lists: list[range]) -> None:
    with pytest.raises(SqueezeError, match=r"for each of 2 blocks, all of one length|at least one of 0 to 127"):
        keep_channels(tiny_model("llama"), lists)


def test_an_architecture_that_is_not_known_keeps_its_channels() -> None:
    with pytest.raises(Unsupported, match="gemma2 models are not known; those known: llama, "):
        keep_channels(random_causal("gemma2"), HALF)


def test_a_list_of_an_entry_a_block_follows(tmp_path: Path) -> None:
    model = random_causal("qwen2")
    assert model.config.layer_types == ["full_attention"] * 2
    keep_blocks(model, [1])
    assert model.config.layer_types == ["full_attention"]
    loads_alone(Subject(model, byte_tokenizer()), tmp_path, "llama")


def test_attention_that_knows_its_place_is_not_moved() -> None:
    model = subject_of("gpt2", layers=3, scale_attn_by_inverse_layer_idx=True).model
    with pytest.raises(Unsupported, match="expected the first blocks, in a row"):
        keep_blocks(model, [0, 2])
    keep_blocks(model, [0, 1])
    assert len(architecture.blocks(model)) == 2


def test_blocks_that_differ_by_their_place_are_not_moved_to_another() -> None:
    """The first of two is dense, the second a mixture of experts: alone it would be loaded as a dense one."""
    config = CONFIG_MAPPING["qwen2_moe"](
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(Unsupported, match="where block 1 would come to stand, its configuration describes another"):
        keep_blocks(model, [1])
    keep_blocks(model, [0])
    assert len(architecture.blocks(model)) == model.config.num_hidden_layers == 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_blocks_of_a_quantized_model_can_go_even_where_layers_are_shared(name: str, tmp_path: Path) -> None:
    rounding = RoundToNearest(8, 32, symmetric=True, embed_bits=8)  # gpt2's head is its embedding: one layer
    subject = rounding.apply(subject_of(name, layers=3), CalibrationText.empty())
    keep_blocks(subject.model, [0, 2])
    artifact.save(subject, tmp_path)
    assert bool(artifact.describe(tmp_path)["shared"]) is (name == "gpt2")
    assert torch.equal(outputs(artifact.load(tmp_path, prepare=False).model), outputs(subject.model))


def test_channels_and_heads_of_a_quantized_model_are_not_cut() -> None:
    subject = RoundToNearest(8, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    for cut in (lambda model: keep_channels(model, HALF), lambda model: keep_heads(model, [[0], [0]])):
        with pytest.raises(Unsupported, match="is a QuantizedLinear, expected a plain layer; cut before the step that"):
            cut(subject.model)


def test_blocks_that_share_a_layer_go_but_are_not_cut_twice() -> None:
    model = subject_of("llama", layers=3).model
    model.model.layers[2].mlp = model.model.layers[0].mlp
    with pytest.raises(Unsupported, match="share layers"):
        keep_channels(model, [range(64)] * 3)
    keep_blocks(model, [1, 2])
    assert outputs(model).isfinite().all()
    keep_channels(model, HALF)
    assert sizes(model).channels == 64


def test_the_highest_scores_are_told_by_place() -> None:
    assert highest(torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0]), 3) == [1, 2, 3]
    assert highest(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2) == [0, 1]
