"""Find out what a layer multiplies in, from the operators that run when it is called. No layer is believed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from squeeze.layers.contract import is_compressed
from squeeze.models import architecture

# Operators that multiply integers. What is in no list is taken for floating point.
INTEGER = frozenset({"aten::_int_mm", "quantized::linear_dynamic", "quantized::linear"})
INTEGER_ON_CUDA = frozenset({"bitsandbytes::int8_linear_matmul"})  # on CPUs it may widen, and multiply in float32
ROWS = (1, 64)  # of a decoding step, and of a prompt: both must be integers


def multiplies_integers(layers: Iterable[nn.Module], dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether each of these layers multiplies integers, for few rows and for many; one of a kind is run."""
    kinds = {_kind(layer): layer for layer in layers}
    known = INTEGER | INTEGER_ON_CUDA if device.type == "cuda" else INTEGER
    return bool(kinds) and all(
        operators(layer, _inputs(layer, rows, dtype, device)) & known for layer in kinds.values() for rows in ROWS
    )


@torch.inference_mode()
def operators(layer: nn.Module, inputs: Tensor) -> set[str]:
    """Return the names of all operators that one call runs, such as ``aten::mm``; those within others, too."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        layer(inputs)
    return {event.key for event in profiler.key_averages()}


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """Return what decides the kernel that a layer runs."""
    return (type(layer), *_shape(layer), *(getattr(layer, name, None) for name in ("bits", "group_size", "dtype")))


def _inputs(layer: nn.Module, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones((1, rows, _shape(layer)[1]), dtype=dtype, device=device)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Return (out_features, in_features)."""
    if is_compressed(layer) or isinstance(layer, nn.Linear):
        return int(layer.out_features), int(layer.in_features)
    rows, columns = architecture.weight(layer).shape
    return rows, columns
