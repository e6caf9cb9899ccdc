"""Quantize by GPTQ with gptqmodel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from torch import nn

from scripts.crosscheck.prepare import Inputs


def quantize(inputs: Inputs, bits: int, group_size: int, symmetric: bool, **form: Any) -> Any:
    """Return gptqmodel's quantized model.

    form: fields of the library's QuantizeConfig; what is not given is the library's default.
    """
    config = QuantizeConfig(
        bits=bits, group_size=group_size, sym=symmetric, device="cpu", offload_to_disk=False, **form
    )
    model = GPTQModel.load(str(inputs.model_folder), config, dtype=torch.bfloat16)
    windows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in inputs.calibration.tolist()]
    model.quantize(windows, batch_size=4, calibration_data_min_length=1)
    return model


def ready(quantized: Any, folder: Path) -> nn.Module:
    """Return the model as loaded from disk: only then does it hold the layers that run."""
    quantized.save(str(folder))
    return GPTQModel.load(str(folder), backend=BACKEND.AUTO, device="cpu", dtype=torch.bfloat16).model
