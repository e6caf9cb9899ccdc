"""Compressed sparse rows multiply as the dense matrix does, in less memory, and only where they gain."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from squeeze.layers import csr
from squeeze.layers.csr import CSR


def sparse_weight(shape: tuple[int, int] = (48, 64), share: float = 0.9, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    weight.view(-1)[torch.randperm(weight.numel(), generator=generator)[: round(share * weight.numel())]] = 0
    return weight.to(dtype)


def test_values_lie_in_row_order_beside_their_columns() -> None:
    weight = torch.zeros(4, 6)
    weight[0, 5], weight[0, 1], weight[2, 3] = 2, 1, -3
    found = CSR.of(weight)
    assert found.offsets.tolist() == [0, 2, 2, 3, 3]
    assert found.columns.tolist() == [1, 5, 3]
    assert found.values.tolist() == [1, 2, -3]
    assert torch.equal(found.dequantize(), weight)


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_multiplies_as_the_dense_matrix(dtype: torch.dtype, rows: int, share: float) -> None:
    weight = sparse_weight(share=share, dtype=dtype)
    inputs, bias = torch.randn(rows, 64).to(dtype), torch.randn(48).to(dtype)
    found = CSR.of(weight)
    for given in (None, bias):
        outputs = found.multiply(inputs, given)
        assert outputs.dtype == dtype
        exact = linear(inputs.double(), weight.double(), None if given is None else given.double())
        torch.testing.assert_close(outputs.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert torch.equal(found.dequantize(), weight)


def test_a_nonzero_weight_takes_64_bits() -> None:
    found = CSR.of(sparse_weight(share=0.75, dtype=torch.bfloat16))
    assert sum(tensor.nbytes for tensor in found.tensors()) == 8 * 48 * 64 // 4 + 4 * 49


@pytest.mark.parametrize("dtype", csr.LEAST_SPARSITY)
def test_it_is_used_from_the_measured_sparsity_on(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert csr.LEAST_SPARSITY[dtype] >= 0.75, "it takes more memory than dense below"
    monkeypatch.setattr(csr, "LEAST_SPARSITY", {dtype: 0.9})
    assert csr.arrange(sparse_weight((50, 60), 0.9, dtype)) is not None
    assert csr.arrange(sparse_weight((50, 60), 0.899, dtype)) is None
    assert csr.arrange(sparse_weight((50, 60), 0.95, torch.float64)) is None


class Layer(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layout = CSR.of(weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layout.multiply(inputs, None) + 1


@torch.inference_mode()
def test_a_compiler_takes_it_whole() -> None:
    weight, inputs = sparse_weight(), torch.randn(3, 64)
    compiled = torch.compile(Layer(weight), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), linear(inputs, weight) + 1)
