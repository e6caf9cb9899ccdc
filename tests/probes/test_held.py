"""What an object reaches in memory is counted once, wherever it lies; what belongs to the process is not."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from squeeze.layers.contract import live_bytes
from squeeze.probes import held
from tests.tiny import ARCHITECTURES, tiny_model

MB = 1_000_000


def reached(root: object) -> int:
    return sum(held.blocks(root, held.closed()).values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_an_honest_model_it_is_what_the_model_shows(name: str) -> None:
    model = tiny_model(name)
    assert live_bytes(model) <= reached(model) < live_bytes(model) + 16_384


def test_views_count_once() -> None:
    whole = torch.zeros(1000)
    assert reached([whole, whole[:10], whole.numpy(), whole.untyped_storage()]) == 4000


@pytest.mark.parametrize(
    "copy",
    [
        torch.zeros(MB, dtype=torch.uint8),
        torch.zeros(MB, dtype=torch.uint8).untyped_storage(),
        np.zeros(MB, dtype=np.uint8),
        bytes(MB),
        bytearray(MB),
        memoryview(bytes(MB)),
        "x" * MB,
        array("b", bytes(MB)),
        [float(number) for number in range(MB // 24)],
    ],
    ids=lambda copy: type(copy).__name__,
)
def test_each_kind_of_memory_counts(copy: object) -> None:
    model = nn.Linear(1, 1)
    before = reached(model)
    model.hook = lambda value={"more": (copy,)}: value
    assert reached(model) - before == pytest.approx(MB, rel=0.07)


def test_tensors_that_are_not_reached_are_counted_apart() -> None:
    model = nn.Linear(1000, 1000)
    before = held.elsewhere(held.blocks(model, held.closed()))
    other = torch.zeros(MB, dtype=torch.uint8)
    assert held.elsewhere(held.blocks(model, held.closed())) - before == other.nbytes


def test_what_is_found_is_said_beyond_an_allowance() -> None:
    assert held.mismatches(100 * MB, 101 * MB, 10 * MB) == []
    assert held.mismatches(100 * MB, 104 * MB, 0) == [
        "claimed 100,000,000 bytes in memory, found 104,000,000 that the model can reach"
    ]
    assert held.mismatches(100 * MB, 100 * MB, 30 * MB) == [
        "claimed 100,000,000 bytes in memory, found 30,000,000 in tensors that the model does not show"
    ]


def test_shapes_without_data_are_no_memory() -> None:
    """Tracing a model leaves tensors behind that have an address of nothing."""
    with FakeTensorMode():
        traced = torch.empty(4, 4)
    assert held.block(traced) == {}
    assert held.block(torch.empty(4, 4, device="meta")) == {}
