"""Settings that hold for a stretch of code are put back after it."""

from __future__ import annotations

import pytest
import torch

from squeeze.models.architecture import base_model
from squeeze.models.settings import eager_attention
from tests.tiny import CAUSAL, tiny_model

TOKEN_IDS = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_attention_maps_are_there_within_it_alone(name: str) -> None:
    model, other = tiny_model(name), tiny_model(name, seed=1)
    other.set_attn_implementation("eager")  # type: ignore[operator]
    before = model(TOKEN_IDS).logits
    with pytest.raises(ValueError, match="mine"), eager_attention(model, other):
        maps = base_model(model)(input_ids=TOKEN_IDS, use_cache=False, output_attentions=True).attentions
        assert [tuple(each.shape) for each in maps] == 2 * [(2, 4, 9, 9)]
        torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 4, 9))
        torch.testing.assert_close(model(TOKEN_IDS).logits, before, rtol=1e-3, atol=1e-4)
        raise ValueError("mine")
    kept = [each.config._attn_implementation for each in (model, other)]  # type: ignore[union-attr]
    assert kept == ["sdpa", "eager"]
    assert torch.equal(model(TOKEN_IDS).logits, before)
