"""Change settings of torch and transformers for a stretch of code, and put them back."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.utils import logging


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let float32 matmuls on CPU multiply in bfloat16 and add in float32: exact for bfloat16 numbers as factors."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: in long rows of small operations, threads cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers within the body; its settings are put back afterwards. Exceptions pass."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of its GGUF reader heeds no setting
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def eager_attention(*models: nn.Module) -> Iterator[None]:
    """Let models compute their attention maps, which fused attention never has, within the body."""
    before = [model.config._attn_implementation for model in models]  # type: ignore[union-attr]
    try:
        for model in models:
            model.set_attn_implementation("eager")  # type: ignore[operator]
        yield
    finally:
        for model, implementation in zip(models, before, strict=True):
            model.set_attn_implementation(implementation)  # type: ignore[operator]
