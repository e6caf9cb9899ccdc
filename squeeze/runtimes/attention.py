"""Let a model compute its attention in one of the ways that transformers has, by what this machine can run."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn
from transformers.utils import is_flash_attn_2_available

from squeeze.core.errors import Unsupported
from squeeze.models import architecture

Implementation = Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]

ON_CUDA = ("flash_attention_2", "flex_attention")
HALVES = ("bfloat16", "float16")  # what flash_attention_2 computes in


def use_attention(model: nn.Module, implementation: str, device: str) -> None:
    """Let a model compute its attention so, in place.

    "eager" writes it out, "sdpa" is torch's fused operator, "flash_attention_2" (Dao 2023, arXiv:2307.08691) the
    package flash-attn's kernel, "flex_attention" one that torch compiles for the mask. Raises Unsupported where there
    is no such implementation, where this machine cannot run it, and for a model that does not know it.
    """
    known: Any = model
    if implementation not in get_args(Implementation):
        expected = ", ".join(get_args(Implementation))
        raise Unsupported(f"there is no attention {implementation!r}; expected one of {expected}")
    if implementation in ON_CUDA and not device.startswith("cuda"):
        raise Unsupported(f"{implementation} runs on CUDA, here on {device}; use eager or sdpa, or device=cuda")
    if implementation == "flash_attention_2":
        dtype = str(architecture.dtype(model)).removeprefix("torch.")
        if dtype not in HALVES:
            raise Unsupported(
                f"flash_attention_2 computes in {' or '.join(HALVES)}, not in {dtype}; use dtype=bfloat16"
            )
        if not is_flash_attn_2_available():
            raise Unsupported("flash_attention_2 needs the package flash-attn, which is not installed; use sdpa")
    try:
        known.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise Unsupported(f"{type(model).__name__} has no {implementation} attention ({error}); use eager") from error
    if (found := known.config._attn_implementation) != implementation:
        raise Unsupported(f"{type(model).__name__} has {found} attention and no {implementation}; use runtime=eager")
