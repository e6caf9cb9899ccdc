"""Quantize with bitsandbytes as transformers loads it, without squeeze in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from scripts.crosscheck.prepare import Inputs


def quantize(inputs: Inputs, **options: Any) -> nn.Module:
    """Return the model as loaded and quantized by bitsandbytes; options: fields of BitsAndBytesConfig."""
    if "load_in_4bit" in options:
        options["bnb_4bit_compute_dtype"] = torch.bfloat16
    config = BitsAndBytesConfig(llm_int8_skip_modules=["lm_head"], **options)
    return inputs.model(quantization_config=config, device_map={"": "cpu"})
