"""Every supported architecture shows its blocks, linear layers and head in the same way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from tests.tiny import ARCHITECTURES, CAUSAL, tiny_model

# Such as q, k, v, o, gate, up and down for Llama; fused c_attn, c_proj, c_fc and c_proj for GPT-2.
LINEARS_PER_BLOCK = {"llama": 7, "gpt2": 4, "opt": 6, "gpt_neox": 4, "bert": 6}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_and_linears_are_found(name: str) -> None:
    model = tiny_model(name)
    assert len(architecture.blocks(model)) == 2
    layers = architecture.block_linears(model)
    assert len(layers) == 2 * LINEARS_PER_BLOCK[name]
    assert all(model.get_submodule(path) is layer for path, layer in layers.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weight_is_out_by_in_and_writes_through(name: str) -> None:
    layer = next(iter(architecture.block_linears(tiny_model(name)).values()))
    inputs = torch.eye(architecture.weight(layer).shape[1])
    bias = architecture.bias(layer)
    expected = layer(inputs) - (0 if bias is None else bias)
    assert torch.allclose(architecture.weight(layer).T, expected, atol=1e-6)
    architecture.weight(layer)[0] = 0
    assert torch.allclose(layer(inputs)[:, 0], torch.zeros(()) if bias is None else bias[0])


@pytest.mark.parametrize("name", CAUSAL)
def test_head_of_the_last_hidden_state_gives_the_logits(name: str) -> None:
    model = tiny_model(name)
    token_ids = torch.arange(12).reshape(2, 6)
    hidden = architecture.last_hidden_state(model, input_ids=token_ids)
    assert torch.allclose(architecture.head(model)(hidden), model(token_ids).logits, atol=1e-6)


def test_replace_puts_a_layer_in_its_place() -> None:
    model = tiny_model("llama")
    name = next(iter(architecture.block_linears(model)))
    new = nn.Identity()
    architecture.replace(model, name, new)
    assert model.get_submodule(name) is new


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(Unsupported, match="no transformer blocks"):
        architecture.blocks(nn.Linear(2, 2))


def test_an_encoder_has_no_head() -> None:
    with pytest.raises(Unsupported, match="head"):
        architecture.head(tiny_model("bert"))


def test_what_blocks_share_is_replaced_in_all_its_places_and_nothing_else() -> None:
    model = tiny_model("llama")
    first, second = architecture.blocks(model)
    second.mlp.up_proj = first.mlp.up_proj
    down, own = second.mlp.down_proj, nn.Linear(64, 128)
    architecture.replace(model, "model.layers.1.mlp.up_proj", own)
    assert first.mlp.up_proj is second.mlp.up_proj is own
    assert second.mlp.down_proj is down
    architecture.replace(model, "model.layers.1.mlp.down_proj", nn.Linear(128, 64))
    assert type(first.mlp.down_proj) is nn.Linear
    assert first.mlp.down_proj is not second.mlp.down_proj is not down
