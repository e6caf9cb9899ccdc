"""Quantize with squeeze's own techniques, as its configuration has them."""

from __future__ import annotations

from torch import nn

from scripts.crosscheck.prepare import Inputs
from squeeze.artifacts.build import resolve_step
from squeeze.layers.contract import prepare_layers
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.techniques.calibration import CalibrationText


def quantize(inputs: Inputs, request: str) -> nn.Module:
    """Return the model after the steps of the one cell that ``request`` names; without the shared pass, all is cold.

    A cell that asks for fewer windows of calibration gets the first ones.
    """
    [cell] = cells(request.split())
    subject = Subject(inputs.model(), inputs.tokenizer())
    calibration = CalibrationText(inputs.calibration[: cell.calibration.get("samples")])
    for step in cell.technique["steps"]:
        subject = resolve_step(step).apply(subject, calibration)
    prepare_layers(subject.model)
    return subject.model
