"""A whole model in float32: what is trained there adds up, and what comes back is what it was, and where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from squeeze.layers.whole_model import in_float32
from tests.tiny import CAUSAL, tiny_model

TOKEN_IDS = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))


def _tied(model: nn.Module) -> bool:
    head, table = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    return head.weight is table.weight  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CAUSAL)
def test_untrained_it_comes_back_as_it_was(name: str, dtype: str) -> None:
    model = tiny_model(name, dtype)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    buffers = {key: buffer.dtype for key, buffer in model.named_buffers()}
    tied = _tied(model)
    with in_float32(model) as parameters:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert sum(p.numel() for p in parameters) == sum(p.numel() for p in model.parameters())
        assert model(TOKEN_IDS).logits.dtype == torch.float32
        assert {key: buffer.dtype for key, buffer in model.named_buffers()} == buffers
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert {after[key].dtype for key in before} == {tensor.dtype for tensor in before.values()}
    assert tied == _tied(model)


@torch.no_grad()
def test_steps_too_small_for_the_models_type_add_up_in_all_parts() -> None:
    model = tiny_model("llama", "bfloat16")
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    with in_float32(model) as parameters:
        for parameter in parameters:
            for _ in range(8):
                parameter.mul_(1 + 2**-9)  # bfloat16 has nothing between 1 and 1 + 2^-7
    after = dict(model.named_parameters())
    assert all((after[key] != parameter).float().mean() > 0.9 for key, parameter in before.items())


@torch.no_grad()
def test_each_parameter_comes_back_in_its_own_type() -> None:
    model = tiny_model("llama", "bfloat16")
    kept = model.model.norm.weight  # type: ignore[union-attr]
    kept.data = kept.data.float()  # type: ignore[operator,union-attr]
    with in_float32(model):
        pass
    types = {key: parameter.dtype for key, parameter in model.named_parameters()}
    assert types.pop("model.norm.weight") == torch.float32
    assert set(types.values()) == {torch.bfloat16}
