"""What is trained in a layer's place leaves behind what it multiplied with: zeros, sharing, factors and codes kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import Unsupported
from squeeze.layers import affine, trainable
from squeeze.layers.codebook import CodebookLinear
from squeeze.layers.contract import linear
from squeeze.layers.int8 import Int8Linear
from squeeze.layers.lora import LoraLinear
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.layers.trainable import Trainable
from squeeze.models import architecture
from tests.tiny import tiny_model

DTYPES = [torch.float32, torch.bfloat16]


class Factors(nn.Module):
    """A matrix of two factors, under the contract of compressed layers."""

    memory_real = True
    compute_real = True
    running_bits = 8.0
    opaque_bytes = 0

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.register_buffer("right", torch.empty((rank, in_features), dtype=self.dtype))
        self.register_buffer("left", torch.empty((out_features, rank), dtype=self.dtype))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)

    def prepare(self) -> None: ...

    def dequantize(self) -> torch.Tensor:
        return self.left @ self.right

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(inputs, self.right), self.left, self.bias)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(dtype: torch.dtype) -> nn.Linear:
    return linear(drawn(48, 64).to(dtype), drawn(48, seed=1).to(dtype))


def transposed(dtype: torch.dtype) -> Conv1D:
    layer = Conv1D(48, 64).requires_grad_(False)
    layer.weight.data, layer.bias.data = drawn(64, 48).to(dtype), drawn(48, seed=1).to(dtype)
    return layer


def sparse(dtype: torch.dtype) -> SparseLinear:
    """Two of each four neighbours are zero."""
    weight = drawn(48, 16, 4)
    weight[:, :, 1:3] = 0
    return SparseLinear.of(weight.flatten(1).to(dtype), drawn(48, seed=1).to(dtype))


def factors(dtype: torch.dtype) -> Factors:
    layer = Factors(64, 48, 8, True, str(dtype).removeprefix("torch."))
    layer.right, layer.left, layer.bias = (
        tensor.to(dtype) for tensor in (drawn(8, 64), drawn(48, 8, seed=1), drawn(48, seed=2))
    )
    return layer


def quantized(dtype: torch.dtype) -> QuantizedLinear:
    weight = drawn(48, 64).to(dtype)
    grid = affine.fit(weight, 3, 32, symmetric=True)
    return QuantizedLinear.of(grid.quantize(weight), grid, drawn(48, seed=1).to(dtype), dtype)


def shared(dtype: torch.dtype) -> CodebookLinear:
    """Sixteen rows share a codebook of eight values."""
    codes = torch.randint(8, (48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return CodebookLinear.of(codes, drawn(3, 8).bfloat16(), drawn(48, seed=1).to(dtype), dtype)


def int8(dtype: torch.dtype) -> Int8Linear:
    return Int8Linear.of(drawn(48, 64).to(dtype), None)


def low_rank(layer: nn.Module, dtype: torch.dtype) -> Trainable:
    return trainable.low_rank(layer, 4, 8, dtype, torch.Generator().manual_seed(0))


@torch.no_grad()
def moved(trained: Trainable) -> Trainable:
    """As after a training: every parameter is another."""
    for seed, parameter in enumerate(trained.parameters):
        parameter.add_(drawn(*parameter.shape, seed=10 + seed) / 8)
    return trained


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("make", "way"),
    [(make, trainable.full) for make in (plain, transposed, sparse, factors, shared)]
    + [(make, low_rank) for make in (plain, transposed, sparse, quantized)],
)
@torch.no_grad()
def test_what_was_trained_is_what_multiplies_afterwards(make: Any, way: Any, dtype: torch.dtype) -> None:
    layer = make(dtype)
    inputs = drawn(5, 64, seed=3).to(dtype)
    before = layer(inputs)
    trained = way(layer, dtype)
    assert torch.allclose(trained.module(inputs), before, atol=1e-5 if dtype == torch.float32 else 0.3)
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters)
    moved(trained)
    expected, finished = trained.module(inputs), trained.finish()
    assert (expected - before).abs().max() > 0.5
    rounded = dtype == torch.bfloat16 and make is quantized  # A and B are, at the end
    assert torch.allclose(finished(inputs), expected, atol=0.5 if rounded else 1e-5)
    stands_for = {plain: nn.Linear, transposed: Conv1D, sparse: SparseLinear, factors: Factors, shared: CodebookLinear}
    assert type(finished) is stands_for.get(make, LoraLinear)


@pytest.mark.parametrize("way", [trainable.full, low_rank])
def test_zeros_stay_zeros_in_their_pattern(way: Any) -> None:
    layer = sparse(torch.bfloat16)
    zeros, stored = layer.dequantize() == 0, layer.stored_nonzero()
    trained = way(layer, torch.bfloat16)
    optimizer = torch.optim.AdamW(trained.parameters, lr=0.1, weight_decay=0.0)
    for parameter in trained.parameters:
        parameter.requires_grad_(True)
    for _ in range(3):
        trained.module(drawn(5, 64, seed=3).bfloat16()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    finished = trained.finish()
    assert torch.equal(finished.dequantize() == 0, zeros)
    assert finished.stored_nonzero() == stored
    assert (finished.dequantize() != layer.dequantize()).float().mean() > 0.4
    assert trained.count == (stored if way is trainable.full else 4 * (64 + 48))


@pytest.mark.parametrize("make", [quantized, int8])
def test_gradients_pass_through_codes_that_stay(make: Any) -> None:
    """As through the dense weight; the rounding of activations, which has no useful derivative, is left out."""
    layer = make(torch.float32)
    codes = layer.codes.clone()
    module = low_rank(layer, torch.float32).module
    inputs = drawn(5, 64, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(module(inputs).sum(), inputs)
    assert torch.allclose(gradient, layer.dequantize().sum(0).expand(5, 64), atol=1e-4)
    assert torch.equal(layer.codes, codes)


def test_weights_that_share_a_value_share_it_afterwards_and_its_gradient_is_the_sum_of_theirs() -> None:
    layer = shared(torch.float32)
    codes, inputs = layer.codes.clone(), drawn(5, 64, seed=3)
    trained = trainable.full(layer, torch.float32)
    trained.module(inputs).sum().backward()
    expected = torch.zeros(24).index_add_(0, layer.places().flatten(), inputs.sum(0).repeat(48)).view(3, 8)
    [values] = trained.parameters
    assert torch.allclose(values.grad, expected, atol=0.05 * float(expected.abs().max()))  # weights' own are bfloat16
    assert trained.count == 24
    before = layer.codebooks.clone()
    assert moved(trained).finish() is layer
    assert torch.equal(layer.codes, codes)
    assert not torch.equal(layer.codebooks, before)


def test_gradients_of_many_weights_are_added_up_in_float32() -> None:
    """In bfloat16, a sum of ones stops at 256."""
    codes = torch.randint(4, (256, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    layer = CodebookLinear.of(codes, drawn(1, 4).bfloat16(), None, torch.bfloat16)
    trained = trainable.full(layer, torch.bfloat16)
    trained.module(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
    assert torch.equal(trained.parameters[0].grad[0], codes.flatten().bincount(minlength=4).float())


def test_a_layer_in_two_places_is_trained_as_one() -> None:
    model = tiny_model("llama")
    shared = sparse_of(model.model.layers[0].mlp.up_proj)
    for block in model.model.layers:
        block.mlp.up_proj = shared
    trained = trainable.stand_in(model, partial(trainable.full, dtype=torch.float32))
    assert len({each.module for each in trained.values()}) == 13
    moved(trained["model.layers.0.mlp.up_proj"])
    trainable.finish(model, trained)
    first, second = (block.mlp.up_proj for block in model.model.layers)
    assert first is second
    assert isinstance(first, SparseLinear)
    assert not torch.equal(first.dequantize(), shared.dequantize())


@pytest.mark.parametrize("way", [trainable.full, low_rank])
def test_a_weight_that_two_layers_share_is_trained_as_one(way: Any) -> None:
    model = tiny_model("gpt2")
    first, second = (block.mlp.c_fc for block in model.transformer.h)
    second.weight = first.weight
    biases = first.bias.clone(), second.bias.clone()
    trained = trainable.stand_in(model, partial(way, dtype=torch.float32))
    assert sum(len(each.parameters) for each in trained.values()) == (7 if way is trainable.full else 14)
    names = [f"transformer.h.{number}.mlp.c_fc" for number in range(2)]
    moved(trained[names[0]])
    inputs = drawn(3, 64, seed=5)
    with torch.no_grad():
        expected = [trained[name].module(inputs) for name in names]
        trainable.finish(model, trained)
        assert [model.get_submodule(name) for name in names] == [first, second]
        assert first.weight.data_ptr() == second.weight.data_ptr()
        for layer, bias, outputs in zip((first, second), biases, expected, strict=True):
            assert torch.equal(layer.bias, bias)
            assert torch.allclose(layer(inputs), outputs, atol=1e-5)


def test_what_cannot_be_trained_is_refused() -> None:
    adapted = LoraLinear.of(plain(torch.float32), drawn(4, 64), drawn(48, 4), alpha=1, dtype=torch.float32)
    foreign = nn.Linear(64, 48)
    foreign.weight = nn.Parameter(torch.zeros((48, 64), dtype=torch.int8), requires_grad=False)
    for layer, weights, said in (
        (quantized(torch.float32), True, "here is a QuantizedLinear, whose codes cannot be trained; how: lora"),
        (adapted, False, "here has an adapter already"),
        (foreign, False, "here is a Linear, through which no gradients pass"),
    ):
        with pytest.raises(Unsupported, match=said):
            trainable.check("here", layer, weights=weights)
    for layer in (plain(torch.float32), sparse(torch.float32), factors(torch.float32), shared(torch.float32)):
        trainable.check("here", layer, weights=True)


def sparse_of(layer: nn.Module) -> SparseLinear:
    weight = architecture.weight(layer)
    return SparseLinear.of(weight.masked_fill(weight.abs() < 0.05, 0), None)
