"""Artifacts in a format that other software reads: compressed-tensors (vLLM, transformers).

Its ``pack-quantized`` layout has the codes of a row as one little-endian bit stream, which is how they lie here too, so
that exporting moves no bit of them. Beside them: weight_scale (out_features, groups) and weight_shape. Symmetric grids
only: no form of packed zero points was found yet that plain transformers loads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from squeeze import artifact
from squeeze.errors import Unsupported
from squeeze.subject import Subject
from squeeze.techniques.quantized import QuantizedLinear

WORD_BYTES = 4


def to_compressed_tensors(source: Path, folder: Path) -> None:
    """Write the artifact in ``source`` to ``folder``, for ``AutoModelForCausalLM.from_pretrained``.

    Raises IntegrityError for a source that is no artifact; Unsupported for one whose layers this format cannot hold:
    other than packed codes on symmetric grids, or in the place of a layer that is no ``nn.Linear`` (GPT-2).
    """
    subject = artifact.load(source, prepare=False)
    layers = _packed_layers(subject)
    own = tuple(f"{name}." for name in layers)
    tensors = {name: tensor for name, tensor in _stored(subject.model).items() if not name.startswith(own)}
    for name, layer in layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in _parts(layer).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / artifact.WEIGHTS, metadata={"format": "pt"})
    config: dict[str, Any] = subject.model.config.to_dict()  # type: ignore[union-attr,operator]
    config["quantization_config"] = _quantization_config(layers, subject.model)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    subject.tokenizer.save_pretrained(folder)


def _packed_layers(subject: Subject) -> dict[str, QuantizedLinear]:
    layers: dict[str, QuantizedLinear] = {}
    with torch.device("meta"):
        plain = type(subject.model)(subject.model.config)
    for name, module in subject.model.named_modules():
        if not artifact.is_compressed(module):
            continue
        if not isinstance(module, QuantizedLinear) or not module.symmetric:
            raise Unsupported(f"{name}: written for symmetric grids only; export rtn, gptq or awq with symmetric=true")
        if not isinstance(plain.get_submodule(name), nn.Linear):
            raise Unsupported(f"{name}: compressed-tensors quantizes nn.Linear only, not its kind of layer")
        layers[name] = module
    if not layers:
        raise Unsupported("no layer is packed; export an artifact of rtn, gptq or awq")
    return layers


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, of tensors that share their memory the first."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    return {name: tensor for name, tensor in model.state_dict().items() if first[tensor.data_ptr()] == name}


def _parts(layer: QuantizedLinear) -> dict[str, torch.Tensor]:
    assert layer.codes is not None
    assert layer.scales is not None
    parts = {
        "weight_packed": _words(layer.codes),
        "weight_scale": layer.scales.to(layer.dtype),
        "weight_shape": torch.tensor([layer.out_features, layer.in_features]),
    }
    return parts if layer.bias is None else {**parts, "bias": layer.bias}


def _words(stream: torch.Tensor) -> torch.Tensor:
    """(rows, bytes) uint8 -> (rows, words) int32, the last one filled up with zeros."""
    return F.pad(stream, (0, -stream.shape[1] % WORD_BYTES)).contiguous().view(torch.int32)


def _quantization_config(layers: dict[str, QuantizedLinear], model: nn.Module) -> dict[str, Any]:
    """One group for each kind of grid, which names its layers; all other linear layers are ignored."""
    kinds: dict[tuple[int, int | None], list[str]] = {}
    for name, layer in layers.items():
        group_size = None if layer.group_size == layer.in_features else layer.group_size
        kinds.setdefault((layer.bits, group_size), []).append(name)
    groups = {
        f"group_{number}": {
            "targets": names,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if group_size is None else "group",
                "group_size": group_size,
            },
        }
        for number, ((bits, group_size), names) in enumerate(kinds.items())
    }
    ignored = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
    }
