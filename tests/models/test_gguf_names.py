"""llama.cpp's names and orders: rotated and cut into queries, keys and values as it does, the rows say the same."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.gguf_names import in_pairs, in_sections, is_tied, parts
from tests.tiny import tiny_model

HEADS, SIZE = 3, 8
GENERATOR = torch.Generator().manual_seed(0)


def test_channels_that_are_turned_together_become_neighbours() -> None:
    """Turned by transformers and then put in order, or put in order and then turned in neighbouring pairs: the same."""
    rows, angles = torch.randn(HEADS * SIZE, generator=GENERATOR), torch.rand(SIZE // 2, generator=GENERATOR)
    order = in_pairs(HEADS * SIZE, SIZE)
    cos, sin = (torch.cat([turn(angles)] * 2).view(1, 1, SIZE) for turn in (torch.cos, torch.sin))
    theirs, _ = apply_rotary_pos_emb(rows.view(1, HEADS, 1, SIZE), rows.view(1, HEADS, 1, SIZE), cos, sin)
    even, odd = rows[order].view(HEADS, SIZE // 2, 2).unbind(-1)
    turned = torch.stack(
        [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], dim=-1
    ).flatten()
    torch.testing.assert_close(turned, theirs.flatten()[order])


def test_each_row_has_one_place() -> None:
    for order in (in_pairs(HEADS * SIZE, SIZE), in_sections(3 * HEADS * SIZE, SIZE)):
        assert torch.equal(order.sort().values, torch.arange(len(order)))
        assert not torch.equal(order, torch.arange(len(order)))


def test_queries_keys_and_values_of_a_gpt_neox_are_cut_apart() -> None:
    rows = torch.arange(HEADS * 3 * SIZE)
    by_head = rows.view(HEADS, 3 * SIZE).split(SIZE, dim=1)  # as GPTNeoXAttention cuts them
    assert torch.equal(rows[in_sections(len(rows), SIZE)], torch.cat([part.flatten() for part in by_head]))


def test_all_layers_of_a_model_are_named_and_those_with_heads_put_in_order() -> None:
    model = tiny_model("llama")
    found = {part.name: part for part in parts(model)}
    assert len(found) == 3 + 2 * 9
    assert {part.module for part in found.values()} == {
        name.removesuffix(".weight") for name, _ in model.named_parameters()
    }
    assert found["blk.1.ffn_down"].module == "model.layers.1.mlp.down_proj"
    ordered = {name: len(part.rows) for name, part in found.items() if part.rows is not None}
    assert ordered == {f"blk.{block}.attn_{part}": size for block in (0, 1) for part, size in (("q", 64), ("k", 32))}


def test_a_tied_head_has_no_name() -> None:
    model = tiny_model("llama")
    assert not is_tied(model)
    model.lm_head.weight = model.model.embed_tokens.weight
    assert is_tied(model)
    assert "output" not in {part.name for part in parts(model)}
    architecture.replace(model, "lm_head", model.model.embed_tokens)
    assert is_tied(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "gpt2 is not written as GGUF; expected a language model of llama or gpt_neox"),
        ("opt", "opt is not written"),
        ("bert", "bert is not written"),
    ],
)
def test_what_is_not_written_is_refused(name: str, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        list(parts(tiny_model(name)))
