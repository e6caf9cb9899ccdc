"""A model's sizes are those of its layers, whatever they are stored as."""

from __future__ import annotations

import pytest

from squeeze.models.layout import Sizes, group_size, head_groups, head_size, layout, sizes
from squeeze.models.surgery import cut_channels, cut_heads
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_are_counted_in_the_layers_packed_or_not(name: str) -> None:
    subject = tiny_subject(name)
    assert sizes(subject.model) == Sizes(layers=2, hidden=64, channels=128, attention=64)
    packed = RoundToNearest(4, 32, symmetric=True).apply(subject, CalibrationText.empty())
    assert sizes(packed.model) == Sizes(layers=2, hidden=64, channels=128, attention=64)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_that_are_named_are_there(name: str) -> None:
    model, where = tiny_model(name), layout(tiny_model(name))
    names = {each for each, _ in model.named_modules()}
    for below in (*where.up, where.down, *where.heads, where.output):
        assert any(each.endswith(f".0.{below}") for each in names), below
    assert head_groups(model) == (2 if name == "llama" else 4)
    assert (head_size(model), group_size(model)) == (16, 32 if name == "llama" else 16)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_where_blocks_differ_their_mean_is_said(name: str) -> None:
    model = tiny_model(name)
    cut_channels(model, [range(32), range(7)])
    cut_heads(model, [[0], [0, 1]])
    width = 32 if name == "llama" else 16
    assert sizes(model) == Sizes(layers=2, hidden=64, channels=19.5, attention=1.5 * width)
