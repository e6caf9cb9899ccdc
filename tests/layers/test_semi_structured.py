"""The 2:4 pattern is told from others, runs as it on GPUs that have it, and dense everywhere else."""

from __future__ import annotations

import pytest
import torch

from squeeze.layers import semi_structured
from squeeze.layers.sparse import SparseLinear

needs_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < semi_structured.LEAST_CAPABILITY,
    reason="no GPU that multiplies in the 2:4 pattern",
)


def two_of_four(device: str = "cpu") -> torch.Tensor:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight.view(-1, 4).scatter_(1, weight.view(-1, 4).abs().argsort(dim=1)[:, :2], 0)
    return weight.to(device)


def test_the_pattern_is_told_within_aligned_fours() -> None:
    assert semi_structured.is_two_of_four(torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]]))
    assert not semi_structured.is_two_of_four(torch.tensor([[1.0, 0, 2, 0, 0, 1, 2, 3]]))
    assert semi_structured.is_two_of_four(torch.tensor([[0.0, 0, 1, 2, 3, 4, 0, 0]]))


def test_on_a_cpu_it_runs_dense_and_says_so() -> None:
    weight = two_of_four()
    assert semi_structured.arrange(weight) is None
    layer = SparseLinear.of(weight, None)
    layer.prepare()
    assert (layer.memory_real, layer.compute_real, layer.running_bits) == (False, False, 16)


@needs_a_gpu
@pytest.mark.parametrize("rows", [1, 7, 128])
def test_on_a_gpu_it_multiplies_as_the_dense_matrix(rows: int) -> None:
    weight, bias = two_of_four("cuda"), torch.randn(64).bfloat16().cuda()
    inputs = torch.randn(rows, 128).bfloat16().cuda()
    layer = SparseLinear.of(weight, bias)
    layer.prepare()
    assert (layer.memory_real, layer.compute_real) == (True, True)
    assert layer.running_bits == 9
    assert torch.equal(layer.dequantize(), weight)
    torch.testing.assert_close(layer(inputs), torch.nn.functional.linear(inputs, weight, bias), rtol=0.02, atol=0.02)


@needs_a_gpu
def test_other_patterns_and_shapes_run_dense() -> None:
    assert semi_structured.arrange(torch.randn(64, 128).bfloat16().cuda()) is None
    assert semi_structured.arrange(two_of_four("cuda")[:, :72]) is None
    assert semi_structured.arrange(two_of_four("cuda").float()) is None
