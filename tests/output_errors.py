"""How far the layers of a compressed model are off, on the inputs that those of the uncompressed one have."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.layers.contract import is_compressed
from squeeze.layers.factors import Factors
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from tests.tiny import tiny_model


def output_errors(subject: Subject, name: str, text: torch.Tensor) -> dict[str, float]:
    """Each layer's mean of ||(W - W') x||^2 over that of ||W x||^2, by full name; W of the tiny model of this name."""
    found = {}
    for block, module, inputs in CalibrationText(text).input_statistics(tiny_model(name)):
        for layer, statistics in inputs.items():
            weight = architecture.weight(module.get_submodule(layer)).double()
            missing = weight - matrix(subject.model.get_submodule(f"{block}.{layer}"))
            found[f"{block}.{layer}"] = energy(missing, statistics.hessian) / energy(weight, statistics.hessian)
    return found


def energy(matrix: torch.Tensor, hessian: torch.Tensor) -> float:
    """The mean of ||D x||^2: tr(D H D^T)."""
    return float((matrix.double() @ hessian.double() * matrix.double()).sum())


def matrix(layer: nn.Module) -> torch.Tensor:
    """What a layer multiplies with, (out_features, in_features) float64: factors, compressed or plain."""
    if isinstance(layer, Factors):
        return architecture.weight(layer.up).double() @ architecture.weight(layer.down).double()
    return (layer.dequantize() if is_compressed(layer) else architecture.weight(layer)).double()
