"""Masters: they stand in for the layers while these are trained, and leave them behind with what they have learned."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears
from squeeze.layers.master_weights import MasterLinear, mastered, settled
from squeeze.models import architecture
from tests.tiny import ARCHITECTURES, tiny_model

TOKEN_IDS = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_layers_come_back_with_what_the_masters_learned(name: str, dtype: str) -> None:
    model = tiny_model(name, dtype)
    before = model(TOKEN_IDS)[0]
    layers = {path: (model.get_submodule(path), type(model.get_submodule(path))) for path in float_linears(model)}
    with mastered(model) as masters:
        assert masters.keys() == layers.keys()
        assert {master.weight.dtype for master in masters.values()} == {torch.float32}
        assert torch.allclose(model(TOKEN_IDS)[0], before, atol=1e-5 if dtype == "float32" else 0.03)
        for master in masters.values():
            for _ in range(8):
                master.weight.mul_(1 + 2**-9)  # bfloat16 has nothing between 1 and 1 + 2^-7
        trained = model(TOKEN_IDS)[0]
    assert masters == {}
    assert not any(isinstance(module, MasterLinear) for module in model.modules())
    for path, (layer, kind) in layers.items():
        assert model.get_submodule(path) is layer
        assert type(layer) is kind
        assert architecture.weight(layer).dtype == architecture.dtype(model)
    assert not torch.allclose(trained, before, atol=1e-4)
    assert torch.allclose(model(TOKEN_IDS)[0], trained, atol=1e-5 if dtype == "float32" else 0.03)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_settled_masters_multiply_as_they_do_at_the_moment(dtype: str) -> None:
    model = tiny_model("llama", dtype)
    with mastered(model) as masters:
        for factor in (1.25, 0.75):
            for master in masters.values():
                master.weight.mul_(factor)
            expected = model(TOKEN_IDS)[0]
            with settled(model, masters):
                assert not any(isinstance(module, MasterLinear) for module in model.modules())
                assert torch.equal(model(TOKEN_IDS)[0], expected)
            assert all(model.get_submodule(path) is master for path, master in masters.items())


def test_masters_are_back_after_an_error() -> None:
    model = tiny_model("llama")
    with mastered(model) as masters:
        with pytest.raises(RuntimeError, match="mine"), settled(model, masters):
            raise RuntimeError("mine")
        assert all(model.get_submodule(path) is master for path, master in masters.items())


def test_a_model_without_float_layers_is_refused() -> None:
    model = tiny_model("llama")
    for path in float_linears(model):
        architecture.replace(model, path, torch.nn.Identity())
    with pytest.raises(Unsupported, match="no float layers"), mastered(model):
        pass
