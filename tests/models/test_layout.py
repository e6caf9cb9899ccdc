"""A model's sizes are those of its layers, whatever they are stored as."""

from __future__ import annotations

import pytest

from squeeze.models.layout import Sizes, head_groups, layout, sizes
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
    for below in (*where.up, where.down, where.output, *where.keys_and_values):
        assert any(each.endswith(f".0.{below}") for each in names), below
    assert head_groups(model) == (2 if name == "llama" else 4)
