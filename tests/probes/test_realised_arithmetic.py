"""What a layer multiplies in is told by the operators that it runs."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.layers.int8 import Int8Linear
from squeeze.probes.realised import multiplies_integers, operators

CPU = torch.device("cpu")


def test_operators_within_operators_are_seen() -> None:
    assert {"aten::linear", "aten::addmm"} <= operators(nn.Linear(8, 4), torch.ones(2, 8))


def test_integers_are_told_from_floats_and_one_float_layer_spoils_it() -> None:
    whole, floats = Int8Linear.of(torch.randn(16, 32), None), nn.Linear(32, 16)
    assert multiplies_integers([whole], torch.float32, CPU)
    assert not multiplies_integers([floats], torch.float32, CPU)
    assert not multiplies_integers([whole, floats], torch.float32, CPU)
    assert not multiplies_integers([], torch.float32, CPU)
