"""Round to nearest with torchao, in its layouts for CPUs."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from scripts.crosscheck.prepare import Inputs


def quantize(inputs: Inputs, bits: int, group_size: int | None = None) -> nn.Module:
    """Quantize to 8 bits, symmetric, one scale per output row; or to 4, in groups with a scale and a real minimum."""
    model = inputs.model()
    config: Any = Int8WeightOnlyConfig() if bits == 8 else PrototypeInt4WeightOnlyConfig(group_size=group_size)
    quantize_(model.model, config)  # the blocks; the head is not below
    return model
