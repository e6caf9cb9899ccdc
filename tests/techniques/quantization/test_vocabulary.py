"""Quantized embeddings and heads: rows looked up and logits are those of the rounded table, which lies there once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from squeeze.artifacts import format as artifact
from squeeze.artifacts.build import resolve_step
from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import count_parameters, layer_specs, live_bytes, weight_numel
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.realised import unread_bytes
from squeeze.request.expand import cells
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization import vocabulary
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)


def rtn(embed_bits: int | None, group_size: int | None = 32) -> RoundToNearest:
    return RoundToNearest(8, group_size, True, embed_bits=embed_bits)


def is_tied(name: str) -> bool:
    return bool(tiny_model(name).config.tie_word_embeddings) and name != "bert"


@pytest.mark.parametrize("embed_bits", [8, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_model_with_rounded_tables(name: str, embed_bits: int, tmp_path: Path) -> None:
    expected = rtn(None).apply(tiny_subject(name), NO_DATA).model
    tables = {
        id(table): table for table in (expected.get_input_embeddings(), expected.get_output_embeddings()) if table
    }
    rounded = {}
    for table in tables.values():
        weight = table.weight.data
        grid = affine.search(weight, embed_bits, 32 if embed_bits == 4 else weight.shape[1], symmetric=True)
        rounded[weight.data_ptr()] = (table, grid.dequantize(grid.quantize(weight), torch.float32))
    for table, values in rounded.values():
        table.weight.data.copy_(values)
    subject = rtn(embed_bits).apply(tiny_subject(name), NO_DATA)
    torch.testing.assert_close(subject.model(TOKEN_IDS)[0], expected(TOKEN_IDS)[0], rtol=1e-4, atol=1e-4)
    assert count_parameters(subject.model) == count_parameters(tiny_model(name))
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path)
    torch.testing.assert_close(loaded.model(TOKEN_IDS)[0], expected(TOKEN_IDS)[0], rtol=1e-4, atol=1e-4)
    assert count_parameters(loaded.model) == count_parameters(tiny_model(name))
    assert loaded.claims["embed_bits"] == embed_bits


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_tied_table_is_stored_and_held_once(name: str, tmp_path: Path) -> None:
    artifact.save(rtn(8).apply(tiny_subject(name, "bfloat16"), NO_DATA), tmp_path)
    model = artifact.load(tmp_path).model
    embedding, head = model.get_input_embeddings(), architecture.head(model)
    assert (embedding is head) == is_tied(name)
    assert live_bytes(model) < 0.86 * live_bytes(tiny_model(name, "bfloat16"))
    assert unread_bytes(model) == (0 if is_tied(name) else embedding.opaque_bytes)
    assert embedding.opaque_bytes == weight_numel(embedding) + 2 * embedding.out_features


@pytest.mark.parametrize(("bits", "group_size"), [(8, 192), (8, 64), (4, 32), (4, 64), (3, 64), (4, 48)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_looked_up_are_those_of_the_weight(bits: int, group_size: int, symmetric: bool) -> None:
    weight = torch.randn(200, 192, generator=torch.Generator().manual_seed(bits)).bfloat16()
    grid = affine.fit(weight, bits, group_size, symmetric)
    layer = QuantizedLinear.of(grid.quantize(weight), grid, None, torch.bfloat16)
    numbers = torch.tensor([[0, 31, 32, 63, 64], [199, 95, 96, 128, 7]])
    expected = layer.dequantize()[numbers]
    assert torch.equal(layer(numbers), expected)
    layer.prepare()
    assert torch.equal(layer(numbers), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_head_keeps_its_bias(name: str) -> None:
    plain, biased = tiny_subject(name), tiny_subject(name)
    head = architecture.head(biased.model)
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, len(head.weight)), requires_grad=False)
    bias = head.bias.data.clone()
    logits = [rtn(8).apply(subject, NO_DATA).model(TOKEN_IDS)[0] for subject in (plain, biased)]
    torch.testing.assert_close(logits[1], logits[0] + bias)


def gemma(dtype: torch.dtype) -> torch.nn.Module:
    """A tiny Gemma 3: its embedding multiplies the rows of its table by 8, its head reads the table as it is."""
    config = Gemma3TextConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    torch.manual_seed(0)
    return Gemma3ForCausalLM(config).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("embed_bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_embedding_keeps_its_scale(dtype: torch.dtype, embed_bits: int, tmp_path: Path) -> None:
    expected, model = gemma(dtype), gemma(dtype)
    embedding = expected.get_input_embeddings()
    assert type(embedding).__name__ == "Gemma3TextScaledWordEmbedding"
    weight = embedding.weight.data
    grid = affine.search(weight, embed_bits, 64 if embed_bits == 8 else 32, symmetric=True)
    weight.copy_(grid.dequantize(grid.quantize(weight), dtype))
    vocabulary.quantize(model, embed_bits, 32)
    assert torch.equal(model.get_input_embeddings()(TOKEN_IDS), embedding(TOKEN_IDS))
    torch.testing.assert_close(model(TOKEN_IDS)[0], expected(TOKEN_IDS)[0], rtol=0.02, atol=0.02)
    artifact.save(Subject(model, tiny_subject("llama").tokenizer), tmp_path)
    loaded = artifact.load(tmp_path).model
    assert torch.equal(loaded.get_input_embeddings()(TOKEN_IDS), embedding(TOKEN_IDS))
    assert architecture.head(loaded) is loaded.get_input_embeddings()


class Normed(torch.nn.Embedding):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(super().forward(numbers), dim=-1)


def test_an_embedding_that_does_more_is_refused_by_name() -> None:
    subject = tiny_subject("llama")
    subject.model.set_input_embeddings(Normed(260, 64))
    with pytest.raises(Unsupported, match="embed_bits cannot stand for Normed"):
        rtn(8).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)


def test_a_scale_that_is_a_number_is_kept_too() -> None:
    embedding = BartScaledWordEmbedding(260, 64, 1, embed_scale=1.3)
    assert vocabulary.embedding_scale(embedding) == 1.3


@pytest.mark.parametrize(("ranges", "fit"), [("minmax", affine.fit), ("mse", affine.search)])
def test_tables_have_the_ranges_that_were_asked_for(ranges: str, fit: Callable[..., affine.AffineGrid]) -> None:
    weight = tiny_model("llama").get_input_embeddings().weight.data
    technique = RoundToNearest(4, 32, True, embed_bits=4, embed_ranges=ranges)
    table = technique.apply(tiny_subject("llama"), NO_DATA).model.get_input_embeddings()
    assert torch.equal(table.scales, fit(weight, 4, 32, True).scales)


def test_requests_ask_for_the_ranges_of_the_layers_and_old_records_for_the_least_error() -> None:
    (cell,) = cells(["model=tiny_llama", "technique=rtn", "ranges=minmax", "embed_bits=8"])
    assert cell.technique["steps"][0]["embed_ranges"] == "minmax"
    assert rtn(8).embed_ranges == "mse"  # a step that does not say


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_is_rounded_some_rows_at_a_time_to_the_same_bits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def search(weight: torch.Tensor, *fields: Any, **named: Any) -> affine.AffineGrid:
        sizes.append(weight.numel())
        return affine.search(weight, *fields, **named)

    monkeypatch.setitem(vocabulary.RANGES, "mse", search)
    whole = rtn(bits).apply(tiny_subject("gpt2", "bfloat16"), NO_DATA).model.get_input_embeddings().state_dict()
    monkeypatch.setattr(vocabulary, "WEIGHTS_AT_ONCE", 1000)
    parts = rtn(bits).apply(tiny_subject("gpt2", "bfloat16"), NO_DATA).model.get_input_embeddings().state_dict()
    assert sizes[0] == 260 * 64
    assert max(sizes[1:]) <= 1000
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


FAMILY = {
    "gptq": {"bits": 4},
    "gptq_shared": {"bits": 4},
    "awq": {"bits": 4},
    "hqq": {"bits": 4},
    "qat": {"bits": 4, "training_steps": 2},
    "rtn_mixed": {"bits": 4},
}


@pytest.mark.parametrize("name", FAMILY)
def test_every_paper_of_the_family_takes_it_and_sees_the_float_table(name: str) -> None:
    """The blocks come out as without it: what calibration shows is the model as the paper has it."""
    calibration = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))

    def built(embed_bits: str) -> Subject:
        fields = [f"{field}={value}" for field, value in FAMILY[name].items()]
        (cell,) = cells(["model=tiny_llama", f"technique={name}", "group_size=32", f"embed_bits={embed_bits}", *fields])
        return resolve_step(cell.technique["steps"][0]).apply(tiny_subject("llama"), calibration)

    plain, rounded = built("null"), built("8")
    blocks = {key: value for key, value in plain.model.state_dict().items() if ".layers." in key}
    state = rounded.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in blocks.items())
    assert rounded.model.get_input_embeddings().bits == architecture.head(rounded.model).bits == 8
    assert rounded.claims == {**plain.claims, "embed_bits": 8}


def test_only_four_bits_need_groups_that_fill_a_row() -> None:
    model = tiny_model("llama")
    vocabulary.check(model, 8, 48)
    with pytest.raises(Unsupported, match="group_size 48 does not divide"):
        vocabulary.check(model, 4, 48)


def test_later_steps_leave_the_tables_alone() -> None:
    subject = RoundToNearest(4, 32, True).apply(rtn(8).apply(tiny_subject("llama"), NO_DATA), NO_DATA)
    assert subject.model.get_input_embeddings().bits == 8


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (rtn(3), "embed_bits is 3; bits that work: 8, 4, or null"),
        (RoundToNearest(4, 32, True, ranges="max"), "no ranges 'max'; expected minmax or mse"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(technique: RoundToNearest, message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        technique.apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
