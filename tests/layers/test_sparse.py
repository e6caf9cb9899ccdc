"""Sparse layers store what is not zero, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squeeze.layers.contract import spec, weight_numel
from squeeze.layers.sparse import SparseLinear
from squeeze.techniques.pruning.selection import lowest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 64), (5, 13)])
def test_forward_is_that_of_the_dense_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    weight[torch.rand(shape) < 0.6] = 0
    inputs = torch.randn(2, 3, shape[1]).to(dtype)
    expected = torch.nn.functional.linear(inputs, weight, bias)
    layer = SparseLinear.of(weight, bias)
    assert torch.equal(layer.dequantize(), weight)
    assert torch.equal(layer(inputs), expected)
    layer.prepare()
    assert torch.equal(layer(inputs), expected)
    assert layer.mask is None
    assert layer.values is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nearly_empty_weights_are_laid_out_to_skip_their_zeros(dtype: torch.dtype) -> None:
    weight, bias = torch.zeros(32, 64, dtype=dtype), torch.randn(32).to(dtype)
    weight[::2, 7], weight[3, 9] = torch.randn(16).to(dtype), 2
    inputs = torch.randn(2, 3, 64).to(dtype)
    expected = torch.nn.functional.linear(inputs, weight, bias)
    layer = SparseLinear.of(weight, bias)
    assert (layer.memory_real, layer.compute_real, layer.opaque_bytes) == (False, False, 0)
    layer.prepare()
    assert (layer.memory_real, layer.compute_real) == (True, True)
    assert layer.opaque_bytes == 17 * 8 + 33 * 4
    assert layer.running_bits == 8 * layer.opaque_bytes / weight.numel()
    assert (layer.mask, layer.values, layer.weight) == (None, None, None)
    assert torch.equal(layer.dequantize(), weight)
    torch.testing.assert_close(layer(inputs), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_state_is_a_bit_a_weight_and_the_values() -> None:
    weight = torch.zeros(8, 20)
    weight[2, 3], weight[2, 11], weight[7, 19] = 5, -6, 7
    layer = SparseLinear.of(weight, None)
    state = layer.state_dict()
    assert set(state) == {"mask", "values"}
    assert state["mask"].shape == (8, 3)
    assert state["values"].tolist() == [5, -6, 7]
    assert layer.stored_nonzero() == 3
    assert weight_numel(layer) == 160
    copy = SparseLinear(**spec(layer))
    copy.load_state_dict(state, strict=True)
    assert torch.equal(copy.dequantize(), weight)


def test_lowest_takes_the_first_of_equals() -> None:
    assert lowest(torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0]), 0.6).tolist() == [False, True, True, True, False]


def test_lowest_counts_within_each_row() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    assert lowest(scores, 0.5).tolist() == [[True, True, False, False], [False, False, True, True]]


@given(share=st.floats(0, 1), count=st.integers(1, 50), levels=st.integers(1, 5), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_lowest_is_exact_and_in_order(share: float, count: int, levels: int, seed: int) -> None:
    scores = torch.randint(levels, (3, count), generator=torch.Generator().manual_seed(seed)).float()
    mask = lowest(scores, share)
    assert (mask.sum(-1) == round(share * count)).all()
    for row, chosen in zip(scores, mask, strict=True):
        if chosen.any() and not chosen.all():
            assert row[chosen].max() <= row[~chosen].min()
