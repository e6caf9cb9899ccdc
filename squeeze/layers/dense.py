"""Float layers to work on: a step sees what the steps before it left, compressed layers laid out densely again."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.models import architecture


def float_linears(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers within the blocks by full name, as ``nn.Linear`` or ``Conv1D`` in floating point.

    Layers that an earlier step compressed are replaced by their dense equals: their values stay (zeros, grid points),
    how they are stored is for this step to decide.
    Raises Unsupported where a library's own layers have taken their place: those cannot be compressed further.
    """
    for block_name, block in architecture.named_blocks(model):
        for name, module in list(block.named_modules()):
            if artifact.is_compressed(module):
                architecture.replace(model, f"{block_name}.{name}", _dense(module))
    layers = architecture.block_linears(model)
    foreign = [name for name, layer in layers.items() if not architecture.weight(layer).is_floating_point()]
    if foreign or not layers:
        found = type(model.get_submodule(foreign[0])).__name__ if foreign else "none"
        raise Unsupported(f"no float layers to compress in the blocks (found: {found}); put such a step first")
    return layers


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A plain layer with this weight (out_features, in_features) and bias (out_features,), copied by none."""
    out_features, in_features = weight.shape
    with torch.device("meta"):
        layer = nn.Linear(in_features, out_features, bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return layer


def _dense(layer: nn.Module) -> nn.Linear:
    return linear(layer.dequantize(), architecture.bias(layer))  # type: ignore[operator]
