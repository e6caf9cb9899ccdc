"""Write a transformers checkpoint with tensors of its own for packed layers: what all such formats share.

Their words are int32, little-endian, and hold codes as one stream of bits. A row of codes lies so here too, hence
exporting moves no bit of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.destination import becoming
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_compressed, is_described, shared_layers
from squeeze.layers.packing import pack, unpack
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.models.own_sizes import check_described
from squeeze.models.subject import Subject

WORD_BYTES = 4


@dataclass(frozen=True)
class Grid:
    """Say what a checkpoint's configuration says of a layer. group_size: None for one group an output row."""

    bits: int
    group_size: int | None
    symmetric: bool


def packed_layers(subject: Subject, kinds: tuple[type[nn.Module], ...]) -> dict[str, QuantizedLinear]:
    """Return the packed layers by full name; ``kinds``: of the plain layers that the format can replace.

    Raises Unsupported where a layer is compressed in another way than by codes with whole zero points, or stands in
    the place of a layer of another kind, and where no layer is packed.
    """
    if (form := architecture.form(subject.model)) is not None:
        raise Unsupported(
            f"no format has a place for the form {form}: its hidden states are sliced, or its pictures pruned; export"
            " rtn, gptq or awq"
        )
    with torch.device("meta"):
        plain = type(subject.model)(subject.model.config)
    layers: dict[str, QuantizedLinear] = {}
    for name, module in subject.model.named_modules():
        if is_described(module) and not is_compressed(module):
            kind = type(module).__name__
            raise Unsupported(f"{name}: a {kind} is several matrices, where formats have one; export rtn, gptq or awq")
        if not is_compressed(module):
            continue
        if not isinstance(module, QuantizedLinear):
            raise Unsupported(f"{name}: a {type(module).__name__} holds no packed codes; export rtn, gptq or awq")
        if module.real_zeros:
            raise Unsupported(f"{name}: its zero points lie between codes, where no format has any; export rtn or gptq")
        if not isinstance(plain.get_submodule(name), kinds):
            found, expected = type(plain.get_submodule(name)).__name__, " or ".join(kind.__name__ for kind in kinds)
            raise Unsupported(f"{name}: the format replaces {expected} only, and this is one of {found}")
        layers[name] = module
    if shared := shared_layers(subject.model):
        raise Unsupported(f"{min(shared)} is shared with another place, for which formats have no word; export rtn")
    if not layers:
        raise Unsupported("no layer is packed; export an artifact of rtn, gptq or awq")
    return layers


def grids(layers: Mapping[str, QuantizedLinear]) -> dict[Grid, list[str]]:
    """Return the kinds of grid that there are, and the names of their layers.

    A row that is just one group long is of the kind of the other layers' groups, where they have that size.
    """
    within_rows = {layer.group_size for layer in layers.values() if layer.group_size < layer.in_features}
    found: dict[Grid, list[str]] = {}
    for name, layer in layers.items():
        whole_row = layer.group_size == layer.in_features and layer.group_size not in within_rows
        grid = Grid(layer.bits, None if whole_row else layer.group_size, layer.symmetric)
        found.setdefault(grid, []).append(name)
    return found


def code_words(layer: QuantizedLinear) -> torch.Tensor:
    """Pack each row's codes, the last word filled up with zeros: (out_features, words) int32."""
    assert layer.codes is not None
    return words(layer.codes)


def zero_points(layer: QuantizedLinear) -> torch.Tensor:
    """Return all zero points, those of a symmetric grid too: (out_features, groups) uint8."""
    assert layer.scales is not None
    if layer.zeros is None:
        return torch.full(layer.scales.shape, 2 ** (layer.bits - 1), dtype=torch.uint8)
    return unpack(layer.zeros, layer.bits, layer.scales.shape[1])


def column_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes along the output dimension: (out_features, groups) uint8 -> (groups, words) int32."""
    return words(pack(codes.T.contiguous(), bits))


def words(stream: torch.Tensor) -> torch.Tensor:
    """Read bytes as words, the last one filled up with zeros: (rows, bytes) uint8 -> (rows, words) int32."""
    return F.pad(stream, (0, -stream.shape[1] % WORD_BYTES)).contiguous().view(torch.int32)


def write(
    subject: Subject, parts: Mapping[str, Mapping[str, torch.Tensor]], quantization_config: dict[str, Any], folder: Path
) -> None:
    """Write a folder for ``from_pretrained``: the model's tensors, for the layers named in ``parts`` those given.

    Raises Unsupported for a model that its configuration does not describe, and SqueezeError where the folder holds
    anything.
    """
    check_described(subject.model)
    own = tuple(f"{name}." for name in parts)
    tensors = {name: tensor for name, tensor in _stored(subject.model).items() if not name.startswith(own)}
    for name, given in parts.items():
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in given.items()}
    config: dict[str, Any] = subject.model.config.to_dict()  # type: ignore[union-attr,operator]
    config["quantization_config"] = quantization_config
    with becoming(folder) as part:
        save_file(tensors, part / artifact.WEIGHTS, metadata={"format": "pt"})
        (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        subject.tokenizer.save_pretrained(part)


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict, of tensors that share their memory only the first."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    return {name: tensor for name, tensor in model.state_dict().items() if first[tensor.data_ptr()] == name}
