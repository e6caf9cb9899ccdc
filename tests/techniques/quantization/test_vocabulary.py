"""Quantized embeddings and heads: rows looked up and logits are those of the rounded table, which lies there once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import count_parameters, layer_specs, live_bytes, weight_numel
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.probes.realised import unread_bytes
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
