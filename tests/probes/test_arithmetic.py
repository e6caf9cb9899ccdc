"""What a model multiplies in is told by the operators that its layers run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from squeeze.layers.csr import CSR
from squeeze.layers.int8 import Int8Linear
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.probes.arithmetic import Call, Profile, profiled
from tests.tiny import tiny_model

TEXT = torch.arange(80)[None]
NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")


def ran(model: nn.Module, *names: str) -> Profile:
    return profiled(model, {name: model.get_submodule(name) for name in names}, TEXT)


def with_int8(*names: str) -> nn.Module:
    model = tiny_model("llama")
    for name in names:
        architecture.replace(model, name, Int8Linear.of(architecture.weight(model.get_submodule(name)), None))
    return model


def test_a_prompt_and_a_token_are_counted_layer_by_layer() -> None:
    found = ran(tiny_model("llama"), *NAMES)
    assert found.shapes == {NAMES[0]: (128, 64), NAMES[1]: (64, 64)}
    assert found.calls[NAMES[0]] == [Call(64 * 128 * 64, 0, 64 * 128 * 64), Call(128 * 64, 0, 128 * 64)]
    assert not found.multiplies_integers


def test_integers_are_told_from_floats_and_one_float_layer_spoils_it() -> None:
    model = with_int8(NAMES[0])
    assert ran(model, NAMES[0]).multiplies_integers
    assert ran(model, NAMES[0]).calls[NAMES[0]][1] == Call(128 * 64, 128 * 64, 0)
    assert not ran(model, *NAMES).multiplies_integers
    assert not ran(model).multiplies_integers


def test_a_kernel_that_only_decoding_runs_is_not_enough() -> None:
    model = with_int8(NAMES[0])
    layer = model.get_submodule(NAMES[0])
    whole = layer.forward
    layer.forward = lambda inputs: whole(inputs) if inputs.shape[1] == 1 else inputs @ layer.dequantize().T
    prompt, token = ran(model, NAMES[0]).calls[NAMES[0]]
    assert (prompt.in_integers, token.in_integers) == (False, True)
    assert not ran(model, NAMES[0]).multiplies_integers


def test_a_share_of_floats_is_allowed_for_outliers_and_a_product_beside_is_not() -> None:
    assert Call(100, 100, 10).in_integers
    assert not Call(100, 100, 100).in_integers
    assert not Call(100, 10, 0).in_integers


def with_zeros(share: float) -> nn.Module:
    model = tiny_model("llama")
    for name in NAMES:
        layer = SparseLinear.of(scattered(architecture.weight(model.get_submodule(name)), share), None)
        architecture.replace(model, name, layer)
        layer.prepare()
    return model


def scattered(weight: torch.Tensor, share: float) -> torch.Tensor:
    """The weight with this share of zeros, evenly far apart."""
    kept = torch.zeros(weight.numel(), dtype=torch.bool)
    kept[:: round(1 / (1 - share))] = True
    return weight.masked_fill(~kept.view(weight.shape), 0)


def test_products_that_skip_zeros_are_counted_by_the_values_that_they_have() -> None:
    found = ran(with_zeros(0.96875), *NAMES)  # all but one of 32
    assert found.calls[NAMES[0]] == [Call(64 * 128 * 64, 0, 0, 64 * 256), Call(128 * 64, 0, 0, 256)]
    assert found.skips_zeros
    assert not found.multiplies_integers
    half = ran(with_zeros(0.5), *NAMES)  # which runs dense
    assert half.calls[NAMES[0]][1] == Call(128 * 64, 0, 128 * 64)
    assert not half.skips_zeros
    assert not ran(model_that_also_multiplies_densely(), NAMES[0]).skips_zeros


def model_that_also_multiplies_densely() -> nn.Module:
    model = with_zeros(0.96875)
    layer = model.get_submodule(NAMES[0])
    whole = layer.forward
    layer.forward = lambda inputs: whole(inputs) * 0 + inputs @ layer.dequantize().T
    return model


def test_a_sparse_layout_of_a_full_matrix_skips_nothing() -> None:
    model = tiny_model("llama")
    layer = SparseLinear.of(architecture.weight(model.get_submodule(NAMES[0])), None)
    layer.layout, layer.mask, layer.values = CSR.of(layer.dequantize()), None, None
    architecture.replace(model, NAMES[0], layer)
    found = ran(model, NAMES[0])
    assert found.calls[NAMES[0]] == [Call(64 * 128 * 64, 0, 0, 64 * 128 * 64), Call(128 * 64, 0, 0, 128 * 64)]
    assert not found.skips_zeros


def test_half_of_the_values_are_skipped_and_nothing_is_not() -> None:
    assert Call(100, 0, 0, 50).skips_zeros
    assert Call(100, 0, 40, 50).skips_zeros
    assert not Call(100, 0, 50, 50).skips_zeros
    assert not Call(100, 0, 50, 0).skips_zeros
    assert not Call(100, 0, 0, 0).skips_zeros


def test_an_encoder_reads_a_prompt_alone() -> None:
    model = tiny_model("bert")
    name = next(iter(architecture.block_linears(model)))
    assert len(ran(model, name).calls[name]) == 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_all_products_of_a_prompt_are_counted(name: str) -> None:
    model = tiny_model(name)
    weights = sum(architecture.weight(layer).numel() for layer in architecture.block_linears(model).values())
    weights += architecture.head(model).weight.numel()
    assert ran(model).multiplications == pytest.approx(weights, rel=0.2)  # attention is among them, if torch shows it
    assert ran(model).multiplications >= weights
