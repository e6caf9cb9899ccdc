"""Quantize what is as wide as the vocabulary: the table of token embeddings, and the output head."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.affine import AffineGrid
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture

BITS = (8, 4)
RANGES = {"minmax": affine.fit, "mse": affine.search}
WEIGHTS_AT_ONCE = 2**20  # whose grid is fitted at a time: a search holds several float32 copies of them
PROBES = 4  # tokens whose embeddings are compared with the rows of the table


def check(model: nn.Module, bits: int | None, group_size: int | None) -> None:
    """Check, before any work, that ``quantize`` can do what is asked; bits of None ask for nothing.

    Raises Unsupported for other bits than 8 and 4, for groups that do not fill an embedding's row, and for a table of
    embeddings that is more than a table; see ``embedding_scale``.
    """
    if bits is None:
        return
    if bits not in BITS:
        raise Unsupported(f"embed_bits is {bits}; bits that work: {', '.join(map(str, BITS))}, or null for none")
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    embedding_scale(embedding)
    if bits < 8:
        affine.check_group_size(group_size, [embedding.weight.shape[1]])


def quantize(model: nn.Module, bits: int | None, group_size: int | None, ranges: str = "mse") -> dict[str, int]:
    """Round the token embedding and the head to nearest, symmetrically; return what can be claimed then.

    bits: 8 with a scale per token, 4 in groups of ``group_size``, or None: nothing is done. ranges: "minmax", each
    group's own, or "mse", shrunk to where the squared error is least.

    Where both share their weight, one layer takes both places and the model is no longer tied by its configuration.
    Embeddings of positions and token types stay as they are. For a method that looks at data this comes last, so that
    what it has seen is the model as its paper has it.
    """
    if bits is None:
        return {}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    names = {module: name for name, module in model.named_modules()}
    tied = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
    size = None if bits == 8 else group_size
    bias = architecture.bias(head) if tied else None
    table = _rounded(embedding.weight.data, bias, bits, size, ranges, embedding_scale(embedding))
    architecture.replace(model, names[embedding], table)
    if tied:
        architecture.replace(model, names[head], table)
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    elif head is not None:
        rounded = _rounded(architecture.weight(head), architecture.bias(head), bits, size, ranges)
        architecture.replace(model, names[head], rounded)
    return {"embed_bits": bits}


def embedding_scale(embedding: nn.Module) -> float:
    """Return the factor by which an embedding multiplies the rows of its table, as Gemma's and BART's do; mostly 1.

    It is rounded as the embedding rounds it: Gemma's to the table's dtype, BART's, a number, not at all.
    Raises Unsupported, with the class, for an embedding that does anything else to the rows.
    """
    weight, scale = getattr(embedding, "weight", None), getattr(embedding, "embed_scale", 1.0)
    factor = float(scale.to(weight.dtype)) if isinstance(scale, torch.Tensor) and weight is not None else float(scale)
    if isinstance(embedding, nn.Embedding) and weight is not None:
        numbers = torch.linspace(0, len(weight) - 1, PROBES, device=weight.device).long()
        with torch.no_grad():
            if torch.equal(embedding(numbers), weight[numbers] * factor):
                return factor
    raise Unsupported(
        f"embed_bits cannot stand for {type(embedding).__name__}, which does not give the rows of its table, or those "
        f"times its embed_scale; use embed_bits=null"
    )


def _rounded(
    weight: torch.Tensor, bias: torch.Tensor | None, bits: int, size: int | None, ranges: str, scale: float = 1.0
) -> QuantizedLinear:
    """Fit and round some rows at a time: they do not touch each other, and tables are large."""
    columns = weight.shape[1]
    parts = []
    for rows in torch.split(weight, max(WEIGHTS_AT_ONCE // columns, 1)):
        grid = RANGES[ranges](rows, bits, size or columns, symmetric=True)
        parts.append((grid.quantize(rows), grid.scales))
    codes, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedLinear.of(codes, AffineGrid(bits, scales, None), bias, weight.dtype, scale)
