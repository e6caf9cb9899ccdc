"""What a technique is given of the calibration text, and of the model before any step."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import SqueezeError
from squeeze.techniques.calibration import CalibrationText
from tests.tiny import tiny_model


def test_text_that_belongs_to_no_cell_has_nothing_held_out_and_no_baseline() -> None:
    for text in (CalibrationText.empty(), CalibrationText(torch.zeros((2, 4), dtype=torch.int64))):
        assert text.held_out.shape == (0, 0)
        with pytest.raises(SqueezeError, match="no uncompressed model to load, expected that of a cell"):
            text.baseline()


def test_the_baseline_is_loaded_each_time_that_it_is_asked_for() -> None:
    text = CalibrationText(torch.zeros((2, 4), dtype=torch.int64), load_baseline=lambda: tiny_model("llama"))
    one, other = text.baseline(), text.baseline()
    assert one is not other
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
