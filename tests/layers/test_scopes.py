"""What is trained of a model is float32 while it is, and multiplied with as the model will multiply afterwards."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers import scopes
from squeeze.layers.scopes import held
from squeeze.models import architecture
from tests.tiny import CAUSAL, tiny_model

TOKEN_IDS = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scope", ["linear", "all"])
@pytest.mark.parametrize("name", CAUSAL)
def test_what_was_learned_is_there_afterwards_in_the_models_dtype(name: str, scope: str, dtype: str) -> None:
    model = tiny_model(name, dtype)
    names = [key for key, _ in model.named_parameters()]
    with torch.no_grad(), held(model, scope) as trained:
        layers = architecture.block_linears(tiny_model(name)).values()
        linear = sum(architecture.weight(layer).numel() for layer in layers)
        everything = sum(parameter.numel() for parameter in tiny_model(name).parameters())
        assert sum(each.numel() for each in trained.parameters) == (everything if scope == "all" else linear)
        assert {parameter.dtype for parameter in trained.parameters} == {torch.float32}
        for parameter in trained.parameters:
            for _ in range(8):
                parameter.mul_(1 + 2**-9)  # bfloat16 has nothing between 1 and 1 + 2^-7
        with trained.multiplying():
            expected = model(TOKEN_IDS).logits
        with trained.settled():
            assert torch.equal(model(TOKEN_IDS).logits, expected)
        assert expected.dtype == getattr(torch, dtype)
    with torch.no_grad():
        found = model(TOKEN_IDS).logits
    assert [key for key, _ in model.named_parameters()] == names
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    tolerance = (1e-5 if dtype == "float32" else 0.03) * float(expected.abs().max())
    assert torch.allclose(found, expected, atol=tolerance, rtol=0)


def test_a_cast_without_gradient_is_not_what_a_later_one_finds() -> None:
    model = tiny_model("llama", "bfloat16")
    with held(model, "all") as trained:
        for parameter in trained.parameters:
            parameter.requires_grad_()
        with trained.multiplying():
            with torch.no_grad():
                model(TOKEN_IDS)
            loss = model(TOKEN_IDS).logits.float().square().mean()
        gradients = torch.autograd.grad(loss, trained.parameters)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        for parameter in trained.parameters:
            parameter.requires_grad_(False)


def test_a_scope_that_is_none_is_refused() -> None:
    with pytest.raises(Unsupported, match="made_up has no scope 'some'; expected one of linear, all"):
        scopes.check("made_up", "some", tiny_model("llama"))


def test_all_of_a_float16_model_multiplies_in_float32_while_it_is_trained() -> None:
    """Without scaled losses its gradients would vanish."""
    model = tiny_model("llama", "float16")
    with torch.no_grad(), held(model, "all") as trained, trained.multiplying():
        assert model(TOKEN_IDS).logits.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
