"""GPTQ and SmoothQuant by llm-compressor, scored with the layers that it leaves in memory."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from torch import nn

from scripts.crosscheck.prepare import Inputs

BATCH = 4  # windows: as many tokens at a time as in squeeze


def quantize(inputs: Inputs, method: str, **options: Any) -> nn.Module:
    """method: gptq (bits, group_size, symmetric, and fields of GPTQModifier) or smoothquant (alpha)."""
    windows = inputs.calibration.tolist()
    return oneshot(
        model=inputs.model(),
        tokenizer=inputs.tokenizer(),
        recipe={"gptq": _gptq, "smoothquant": _smoothquant}[method](**options),
        dataset=Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]}),
        num_calibration_samples=len(windows),
        max_seq_length=len(windows[0]),
        shuffle_calibration_samples=False,
        batch_size=BATCH,
    )


def _gptq(bits: int, group_size: int, symmetric: bool, **form: Any) -> list[Any]:
    weights = {"type": "int", "num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": group_size}
    groups = {"linears": {"targets": ["Linear"], "weights": weights}}
    return [GPTQModifier(config_groups=groups, ignore=["lm_head"], **form)]


def _smoothquant(alpha: float) -> list[Any]:
    return [
        SmoothQuantModifier(smoothing_strength=alpha),
        QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    ]
