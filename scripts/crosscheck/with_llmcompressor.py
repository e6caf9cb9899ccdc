"""Quantize by GPTQ, AWQ and SmoothQuant, or prune by Wanda and SparseGPT, with llm-compressor.

What is scored are the layers that it leaves in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch import nn

from scripts.crosscheck.prepare import Inputs

BATCH = 4  # windows: as many tokens at a time as in squeeze

if not torch.accelerator.is_available():  # AWQModifier pins memory for one all the same, and torch refuses
    IntermediatesCache.pin_memory = lambda *_: None


def quantize(inputs: Inputs, method: str, samples: int | None = None, **options: Any) -> nn.Module:
    """Return the model that llm-compressor compresses in memory.

    method: gptq or awq (bits, group_size, symmetric, and fields of the modifier), smoothquant (alpha), or wanda or
    sparsegpt (sparsity; run, of which neighbours this share becomes zero; and fields of the modifier).

    samples: how many windows of calibration, the first ones; None: all.
    """
    windows = inputs.calibration[:samples].tolist()
    return oneshot(
        model=inputs.model(),
        tokenizer=inputs.tokenizer(),
        recipe=RECIPES[method](**options),
        dataset=Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]}),
        num_calibration_samples=len(windows),
        max_seq_length=len(windows[0]),
        shuffle_calibration_samples=False,
        batch_size=BATCH,
    )


def _gptq(bits: int, group_size: int, symmetric: bool, **form: Any) -> list[Any]:
    return [GPTQModifier(config_groups=_groups(bits, group_size, symmetric), ignore=["lm_head"], **form)]


def _awq(bits: int, group_size: int, symmetric: bool, **form: Any) -> list[Any]:
    grid = QuantizationModifier(config_groups=_groups(bits, group_size, symmetric), ignore=["lm_head"])
    return [AWQModifier(**form), grid]


def _groups(bits: int, group_size: int, symmetric: bool) -> dict[str, Any]:
    weights = {"type": "int", "num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": group_size}
    return {"linears": {"targets": ["Linear"], "weights": weights}}


def _smoothquant(alpha: float) -> list[Any]:
    return [
        SmoothQuantModifier(smoothing_strength=alpha),
        QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    ]


def _wanda(sparsity: float, run: int | None = None, **form: Any) -> list[Any]:
    return [WandaPruningModifier(**_pattern(sparsity, run), ignore=["re:.*lm_head"], **form)]


def _sparsegpt(sparsity: float, run: int | None = None, **form: Any) -> list[Any]:
    return [SparseGPTModifier(**_pattern(sparsity, run), ignore=["re:.*lm_head"], **form)]


def _pattern(sparsity: float, run: int | None) -> dict[str, Any]:
    return {"sparsity": sparsity, **({} if run is None else {"mask_structure": f"{round(sparsity * run)}:{run}"})}


RECIPES = {"gptq": _gptq, "awq": _awq, "smoothquant": _smoothquant, "wanda": _wanda, "sparsegpt": _sparsegpt}
