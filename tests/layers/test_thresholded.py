"""Thresholds zero what is small, and columns that meet a zero are skipped without changing the product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from squeeze.layers import thresholded
from squeeze.layers.contract import count_parameters, is_compressed, is_described, matrices, prepare_layers, spec
from squeeze.layers.thresholded import ColumnsLinear, Thresholded, by_columns, skipped
from squeeze.models import architecture
from tests.tiny import tiny_model

DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer_of(weight: torch.Tensor, bias: torch.Tensor | None, threshold: float) -> Thresholded:
    return Thresholded.of(ColumnsLinear.of(weight, bias), tuple(weight.shape), threshold, weight.dtype)


@pytest.fixture
def _small_ones_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholded, "SKIPS_OF", 0)
    monkeypatch.setattr(thresholded, "SKIPS_FROM", dict.fromkeys(DTYPES, 0.25))  # not a half: zeros are no others


def test_entries_up_to_the_threshold_count_as_zero() -> None:
    weight = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    layer = layer_of(weight, torch.tensor([0.25]), 0.5)
    assert layer(torch.tensor([[0.5, -0.5, 0.75, -2.0], [-0.75, 0.25, 0.0, 0.5]])).tolist() == [[-1924.75], [-0.5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_threshold_of_zero_changes_nothing(dtype: torch.dtype) -> None:
    weight, inputs = random(5, 7, dtype=dtype), random(2, 3, 7, dtype=dtype, seed=1)
    assert torch.equal(layer_of(weight, None, 0.0)(inputs), F.linear(inputs, weight))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("active", [0, 1, 2, 5, 40])
def test_the_skipping_product_is_the_dense_one(
    active: int, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight, inputs = random(24, 40, dtype=dtype), torch.zeros(40, dtype=dtype)
    places = torch.randperm(40, generator=torch.Generator().manual_seed(2))[:active].sort().values
    inputs[places] = random(active, dtype=dtype, seed=1)
    found = skipped(by_columns(weight), inputs, inputs.nonzero().squeeze(1))
    expected = weight.double() @ inputs.double()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert found.shape == (24,)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_columns_that_meet_a_zero_are_not_read() -> None:
    """What is there may be no number: a product would be none, either."""
    weight, inputs = random(3, 4), torch.tensor([0.0, 2.0, 0.0, -1.0])
    expected = 2 * weight[:, 1] - weight[:, 3]
    weight[:, [0, 2]] = torch.nan
    assert torch.allclose(skipped(by_columns(weight), inputs, torch.tensor([1, 3])), expected)


@pytest.mark.usefixtures("_small_ones_skip")
@pytest.mark.parametrize(("zeros", "skips"), [(9, False), (10, True), (31, True)])
def test_a_quarter_of_zeros_is_enough(zeros: int, skips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, calls = layer_of(random(24, 40), None, 0.5), []
    prepare_layers(torch.nn.ModuleList([layer]))
    real = thresholded.skipped
    monkeypatch.setattr(thresholded, "skipped", lambda *arguments: calls.append(1) or real(*arguments))
    layer(torch.ones(1, 40).masked_fill(torch.arange(40) < zeros, 0))
    assert bool(calls) == skips == layer.base.leaves_out(40 - zeros)


@pytest.mark.usefixtures("_small_ones_skip")
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_skips_where_zeros_are_many(
    dtype: torch.dtype, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = random(24, 40, dtype=dtype), random(24, dtype=dtype, seed=1) if has_bias else None
    layer = layer_of(weight.clone(), bias, 1.2)  # of normal inputs, 77 % are zeroed
    calls = []
    real = thresholded.skipped
    monkeypatch.setattr(thresholded, "skipped", lambda *arguments: calls.append(1) or real(*arguments))
    tokens, few, many = (
        random(2, 3, 40, dtype=dtype, seed=2),
        random(1, 1, 40, dtype=dtype, seed=3),
        torch.full((1, 40), 2),
    )
    layer(few)
    assert not calls, "it is not laid out yet"
    prepare_layers(torch.nn.ModuleList([layer]))
    assert torch.equal(layer.base.dequantize(), weight)
    assert layer.base.weight.T.is_contiguous()
    for inputs, skips in ((tokens, 0), (many.to(dtype), 0), (few, 1)):
        calls.clear()
        masked = torch.where(inputs.abs() > 1.2, inputs, 0)
        expected = F.linear(masked.double(), weight.double(), None if bias is None else bias.double())
        found = layer(inputs)
        assert len(calls) == skips
        assert found.dtype == dtype
        assert found.shape == expected.shape
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "fewest"), [(torch.float32, 961), (torch.float16, 0)])
def test_what_never_skips_is_laid_out_as_it_was(
    dtype: torch.dtype, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of 24 x 40, or of a dtype that nobody has measured."""
    monkeypatch.setattr(thresholded, "SKIPS_OF", fewest)
    layer = ColumnsLinear.of(random(24, 40, dtype=dtype), None)
    layer.prepare()
    assert layer.weight.is_contiguous()
    assert not layer.skips


def test_it_is_stored_as_the_plain_layer_and_made_again_from_its_description() -> None:
    layer = layer_of(random(6, 4), random(6), 0.25)
    assert set(layer.state_dict()) == {"base.weight", "base.bias"}
    assert is_described(layer)
    assert not is_compressed(layer)
    assert is_compressed(layer.base)
    made = Thresholded(**spec(layer))
    made.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(made(random(3, 4, seed=1)), layer(random(3, 4, seed=1)))
    assert ColumnsLinear(**spec(layer.base)).running_bits == 32


def test_it_counts_as_the_matrix_that_it_holds() -> None:
    model = tiny_model("llama")
    before = count_parameters(model)
    for name, plain in architecture.block_linears(model).items():
        architecture.replace(model, name, layer_of(architecture.weight(plain), architecture.bias(plain), 0.1))
    assert count_parameters(model) == before
    assert {type(layer) for _, layer in matrices(model)} == {ColumnsLinear}
