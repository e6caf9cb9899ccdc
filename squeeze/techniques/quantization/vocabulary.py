"""Quantizing what is as wide as the vocabulary: the table of token embeddings, and the output head."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture

BITS = (8, 4)


def check(model: nn.Module, bits: int, group_size: int | None) -> None:
    """Raise Unsupported for other bits than 8 and 4, and for groups that do not fill an embedding's row."""
    if bits not in BITS:
        raise Unsupported(f"embed_bits is {bits}; bits that work: {', '.join(map(str, BITS))}, or null for none")
    if bits < 8:
        affine.check_group_size(group_size, [model.get_input_embeddings().weight.shape[1]])  # type: ignore[operator]


def quantize(model: nn.Module, bits: int, group_size: int | None) -> None:
    """Round the token embedding and the head to nearest, symmetrically: 8 bits with a scale per token, 4 in groups.

    Where both share their weight, one layer takes both places and the model is no longer tied by its configuration.
    Embeddings of positions and token types stay as they are.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    names = {module: name for name, module in model.named_modules()}
    tied = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
    size = None if bits == 8 else group_size
    bias = architecture.bias(head) if tied else None
    table = _rounded(embedding.weight.data, bias, bits, size)
    architecture.replace(model, names[embedding], table)
    if tied:
        architecture.replace(model, names[head], table)
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    elif head is not None:
        rounded = _rounded(architecture.weight(head), architecture.bias(head), bits, size)
        architecture.replace(model, names[head], rounded)


def _rounded(weight: torch.Tensor, bias: torch.Tensor | None, bits: int, group_size: int | None) -> QuantizedLinear:
    grid = affine.search(weight, bits, group_size or weight.shape[1], symmetric=True)
    return QuantizedLinear.of(grid.quantize(weight), grid, bias, weight.dtype)
