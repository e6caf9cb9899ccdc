"""Export artifacts as compressed-tensors, which transformers and vLLM load: the layout ``pack-quantized``.

    weight_packed       (out_features, words) int32: the codes of each row
    weight_scale        (out_features, groups)
    weight_zero_point   (words, groups) int32: zero points packed along the output dimension; asymmetric grids only
    weight_shape        (2,)

Zero points need ``"dequantize": true`` in the configuration: transformers then widens the weights while it loads them.
Otherwise it first compresses an empty model, in which compressed-tensors 0.19.0 forgets to pack the zero points
(``compressors/pack_quantized/base.py``, ``compress``: what the branch of ``device.type == "meta"`` returns still has
them unpacked), and then refuses packed ones for their shape; unpacked ones it loads, and ``decompress`` refuses them
for their type. While widening, transformers reads all layers by the first group of the configuration
(``get_dense_scheme``), hence asymmetric grids of one kind only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports import checkpoint
from squeeze.artifacts.exports.checkpoint import Grid
from squeeze.core.errors import Unsupported
from squeeze.layers.quantized import QuantizedLinear


def to_compressed_tensors(source: Path, folder: Path) -> None:
    """Write the artifact in ``source`` to ``folder``, for ``AutoModelForCausalLM.from_pretrained``.

    Raises IntegrityError for a source that is no artifact; Unsupported for one whose layers this format cannot hold:
    other than packed codes with whole zero points, asymmetric grids beside others, or in the place of a layer that is
    no ``nn.Linear`` (GPT-2).
    """
    subject = artifact.load(source, prepare=False)
    layers = checkpoint.packed_layers(subject, (nn.Linear,))
    grids = checkpoint.grids(layers)
    if len(grids) > 1 and not all(grid.symmetric for grid in grids):
        raise Unsupported(f"{len(grids)} kinds of grid, expected one where zero points are stored; use symmetric=true")
    parts = {name: _parts(layer) for name, layer in layers.items()}
    checkpoint.write(subject, parts, _quantization_config(grids, subject.model), folder)


def _parts(layer: QuantizedLinear) -> dict[str, torch.Tensor]:
    assert layer.scales is not None
    parts = {
        "weight_packed": checkpoint.code_words(layer),
        "weight_scale": layer.scales.to(layer.dtype),
        "weight_shape": torch.tensor([layer.out_features, layer.in_features]),
    }
    if not layer.symmetric:
        parts["weight_zero_point"] = checkpoint.column_words(checkpoint.zero_points(layer), layer.bits).T
    return parts if layer.bias is None else {**parts, "bias": layer.bias}


def _quantization_config(grids: dict[Grid, list[str]], model: nn.Module) -> dict[str, Any]:
    """Make one group for each kind of grid, which names its layers; all other linear layers are ignored."""
    groups = {
        f"group_{number}": {
            "targets": names,
            "weights": {
                "num_bits": grid.bits,
                "type": "int",
                "symmetric": grid.symmetric,
                "strategy": "channel" if grid.group_size is None else "group",
                "group_size": grid.group_size,
            },
        }
        for number, (grid, names) in enumerate(grids.items())
    }
    ignored = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
    }
    return config if all(grid.symmetric for grid in grids) else {**config, "dequantize": True}
