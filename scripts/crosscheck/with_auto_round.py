"""Quantize by SignRound with auto-round: learn roundings and ranges by signed gradient descent, block by block."""

from __future__ import annotations

from typing import Any

import torch
from auto_round import AutoRound
from torch import nn

from scripts.crosscheck.prepare import Inputs


def quantize(
    inputs: Inputs, bits: int, group_size: int, symmetric: bool, samples: int | None = None, **options: Any
) -> nn.Module:
    """Return the model with its weights moved onto their grids, in bfloat16.

    samples: how many windows of calibration, the first ones; None: all. options: of AutoRound, such as ``iters``.
    """
    windows = inputs.calibration[:samples]
    rounding = AutoRound(
        inputs.model(),
        tokenizer=inputs.tokenizer(),
        scheme={"bits": bits, "group_size": group_size, "sym": symmetric, "data_type": "int", "act_bits": 16},
        dataset=list(torch.split(windows, 8)),
        nsamples=len(windows),
        seqlen=windows.shape[1],
        device_map="cpu",
        **options,
    )
    return rounding.quantize()[0]
