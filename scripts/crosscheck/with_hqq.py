"""Quantize by HQQ with its authors' library."""

from __future__ import annotations

import torch
from hqq.core.quantize import BaseQuantizeConfig
from hqq.models.hf.base import AutoHQQHFModel
from torch import nn

from scripts.crosscheck.prepare import Inputs


def quantize(inputs: Inputs, bits: int, group_size: int) -> nn.Module:
    """Quantize groups of neighbours in an output row (the library's axis 1), as in squeeze."""
    model = inputs.model()
    config = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)
    AutoHQQHFModel.quantize_model(model, config, compute_dtype=torch.bfloat16, device="cpu")
    return model
