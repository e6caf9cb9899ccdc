"""Export artifacts in the GPTQ format (AutoGPTQ's, Frantar et al. 2022), for gptqmodel, vLLM and transformers.

    qweight   (in_features * bits / 32, out_features) int32: codes packed along the input dimension
    qzeros    (groups, out_features * bits / 32) int32: zero points packed along the output dimension
    scales    (groups, out_features) 16-bit
    g_idx     (in_features,) int32: the group of each input

Of 3 bits, 32 codes take 3 words: the stream runs on over the ends of words.

``checkpoint_format`` says what qzeros holds. ``gptq``, the first and most widely read: zero points less one, which are
2^(bits-1) - 1 on a symmetric grid. A zero point of 0, which asymmetric grids have, has no code less by one: theirs is
``gptq_v2``, zero points as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports import checkpoint
from squeeze.artifacts.exports.checkpoint import Grid
from squeeze.core.errors import Unsupported
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture

BITS = (2, 3, 4, 8)
WORD_BITS = 32


def to_gptq(source: Path, folder: Path) -> None:
    """Write the artifact in ``source`` to ``folder``, for ``GPTQModel.load``.

    Raises IntegrityError for a source that is no artifact; Unsupported for one that this format cannot hold: layers
    that are not packed codes with whole zero points, of several kinds of grid, of other than 2, 3, 4 or 8 bits, that
    do not fill whole words, or linear layers of the blocks that are not packed at all.
    """
    subject = artifact.load(source, prepare=False)
    layers = checkpoint.packed_layers(subject, (nn.Linear, Conv1D))
    grid = _only(checkpoint.grids(layers))
    for name, layer in layers.items():
        _check_words(name, layer)
    if dense := architecture.block_linears(subject.model):
        raise Unsupported(f"{next(iter(dense))} is not packed; GPTQ loaders expect all linear layers of a block packed")
    parts = {name: _parts(layer) for name, layer in layers.items()}
    checkpoint.write(subject, parts, _quantization_config(grid), folder)


def _only(grids: dict[Grid, list[str]]) -> Grid:
    if len(grids) > 1:
        raise Unsupported(f"{len(grids)} kinds of grid, the GPTQ format has one; export as compressed-tensors")
    [grid] = grids
    if grid.bits not in BITS:
        raise Unsupported(f"{grid.bits} bits, the GPTQ format has 2, 3, 4 and 8; export as compressed-tensors")
    return grid


def _check_words(name: str, layer: QuantizedLinear) -> None:
    for side, count in (("in_features", layer.in_features), ("out_features", layer.out_features)):
        if count * layer.bits % WORD_BITS:
            raise Unsupported(
                f"{name}: {side} {count} x {layer.bits} bits do not fill whole words of {WORD_BITS}, as the GPTQ format"
                " wants; export as compressed-tensors"
            )


def _parts(layer: QuantizedLinear) -> dict[str, torch.Tensor]:
    assert layer.scales is not None
    zeros = checkpoint.zero_points(layer)
    parts = {
        "qweight": checkpoint.code_words(layer).T,
        "qzeros": checkpoint.column_words(zeros - 1 if layer.symmetric else zeros, layer.bits),
        "scales": layer.scales.T,
        "g_idx": torch.arange(layer.in_features, dtype=torch.int32) // layer.group_size,
    }
    return parts if layer.bias is None else {**parts, "bias": layer.bias}


def _quantization_config(grid: Grid) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if grid.symmetric else "gptq_v2",
        "bits": grid.bits,
        "group_size": -1 if grid.group_size is None else grid.group_size,
        "sym": grid.symmetric,
        "desc_act": False,  # groups are neighbours, whatever the order in which columns were rounded
        "lm_head": False,
        "pack_dtype": "int32",
    }
