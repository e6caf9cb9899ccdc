"""A grid is found where there is one, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeeze.models import architecture
from squeeze.models.prequantized import Grid, find_grid, flattered, grid_levels
from tests.tiny import ARCHITECTURES, tiny_model

Q4_1 = Grid(levels=16, block=32, matrices=210)


def on_grid(weight: torch.Tensor, levels: int, block: int = 32) -> torch.Tensor:
    """The weight with `levels` equally spaced values in each block, from its minimum to its maximum."""
    blocks = weight.reshape(-1, block)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    step = (high - low) / (levels - 1)
    return (low + step * ((blocks - low) / step).round()).reshape(weight.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("levels", [3, 8, 16])
def test_levels_are_counted_in_any_dtype(dtype: torch.dtype, levels: int) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert grid_levels(on_grid(weight, levels).to(dtype)) == levels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ordinary_weights_lie_on_none(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert grid_levels(weight.to(dtype)) is None
    assert grid_levels(on_grid(weight, 17).to(dtype)) is None


def test_one_grid_a_row_is_found_in_its_blocks() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert (grid_levels(on_grid(weight, 16, block=256)) or 99) <= 16


def test_a_few_odd_blocks_do_not_hide_a_grid() -> None:
    weight = on_grid(torch.randn(8, 4096, generator=torch.Generator().manual_seed(0)), 16)
    weight[0, :32] = torch.linspace(0, 1, 32)
    assert grid_levels(weight) == 16
    weight[:, :1024] = torch.linspace(0, 1, 1024)
    assert grid_levels(weight) is None


def test_rows_narrower_than_a_block_tell_nothing() -> None:
    assert grid_levels(torch.zeros(4, 16)) is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_models_lie_on_none_until_they_are_put_on_one(name: str) -> None:
    model = tiny_model(name)
    layers = list(architecture.block_linears(model).values())
    assert find_grid(model) is None
    for layer in layers:
        weight = architecture.weight(layer)
        weight.copy_(on_grid(weight, 16))
    assert find_grid(model) == Grid(levels=16, block=32, matrices=len(layers))
    for layer in layers[: len(layers) // 2]:
        architecture.weight(layer).normal_()
    assert find_grid(model) is None


def test_the_exact_case_that_is_marked() -> None:
    """Four bits with a real-valued minimum, in groups that divide the block, give the weights back."""
    weight = on_grid(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)), 16)
    assert torch.allclose(on_grid(weight, 16), weight, atol=1e-6)
    assert not torch.allclose(on_grid(weight, 16, block=128), weight, atol=1e-2)


@pytest.mark.parametrize(
    ("step", "marked"),
    [
        ({"bits": 4, "group_size": 32, "symmetric": False}, True),
        ({"bits": 4, "group_size": 16, "symmetric": False}, True),
        ({"bits": 4, "group_size": 64, "symmetric": False}, True),
        ({"bits": 3, "group_size": 32, "symmetric": False}, True),
        ({"bits": 4, "group_size": 32, "symmetric": True}, False),
        ({"bits": 4, "group_size": 96, "symmetric": False}, False),
        ({"bits": 4, "group_size": 192, "symmetric": False}, False),
        ({"bits": 4, "group_size": None, "symmetric": False}, False),
        ({"bits": 8, "group_size": 32, "symmetric": False}, False),
        ({"sparsity": 0.5}, False),
    ],
)
def test_which_steps_are_marked(step: dict[str, Any], marked: bool) -> None:
    assert flattered(Q4_1, step) is marked
    assert flattered(None, step) is False
