"""Blocks are called by hand as the model calls them, with the states that it gives them."""

from __future__ import annotations

import pytest
import torch

from squeeze.models import architecture
from squeeze.models.block_calls import before_first_block, block_calls
from tests.students import TOKEN_IDS
from tests.tiny import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_blocks_run_by_hand_give_what_the_model_gives(name: str) -> None:
    model = tiny_model(name)
    states = before_first_block(model, TOKEN_IDS, batch=1)
    calls = block_calls(model, TOKEN_IDS[:1])
    for block_name, block in architecture.named_blocks(model):
        output = block(states, *calls[block_name].positional, **calls[block_name].named)
        states = output[0] if isinstance(output, tuple) else output
    if name != "bert":
        states = architecture.final_norm(model)(states)
    assert torch.allclose(states, architecture.last_hidden_state(model, input_ids=TOKEN_IDS), atol=1e-5)
