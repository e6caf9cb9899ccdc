"""Keep adapters beside the base that they change, as peft's own adapter folder, and put them back when it is loaded.

    adapter/adapter_config.json         what peft's LoraConfig has other than by default
    adapter/adapter_model.safetensors   base_model.model.LAYER.lora_A.weight, .lora_B.weight and, of DoRA,
                                        .lora_magnitude_vector

The base's own files are, byte for byte, those of an artifact without an adapter: many adapters cost one base.
``base_model_name_or_path`` says ``sha256:HEX``, over the bytes of the base's weight files in the order of their names.
peft itself puts the folder on a base of floats, or of bitsandbytes: ``PeftModel.from_pretrained(model, "adapter")``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import IntegrityError
from squeeze.core.files import read_small
from squeeze.layers.lora import LoraLinear
from squeeze.models import architecture

FOLDER = "adapter"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # before the names of layers, in peft's files
BASE = "sha256:"
LARGEST_CONFIG = 2**20  # bytes
NAMES = {"A.weight": "lora_A", "B.weight": "lora_B", "magnitude_vector": "magnitude"}  # behind `.lora_`: of LoraLinear


def write(model: nn.Module, adapters: Mapping[str, LoraLinear], folder: Path) -> None:
    """Write the adapters of an artifact, by the full names of their layers, whose base has been written to ``folder``.

    model: the base, its layers in their places. All adapters are of one rank, alpha and kind.
    """
    parts = {
        f"{PREFIX}{name}.lora_{part}": getattr(adapter, attribute).detach().cpu().contiguous().clone()
        for name, adapter in adapters.items()
        for part, attribute in NAMES.items()
        if getattr(adapter, attribute) is not None
    }
    (folder / FOLDER).mkdir(exist_ok=True)
    save_file(parts, folder / FOLDER / WEIGHTS, metadata={"format": "pt"})
    described = json.dumps(_config(model, adapters, base_hash(folder)), indent=2, sort_keys=True)
    (folder / FOLDER / CONFIG).write_text(described + "\n")


def attach(model: nn.Module, folder: Path) -> None:
    """Put the adapters of an artifact on its base, as it is stored.

    Raises IntegrityError for an adapter that is damaged, does not fit, or was trained on another base.
    """
    try:
        config = json.loads(read_small(folder / FOLDER / CONFIG, LARGEST_CONFIG))
        alpha, rslora, trained_on = config["lora_alpha"], config["use_rslora"], config["base_model_name_or_path"]
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / FOLDER / WEIGHTS).items():
            name, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
            parts.setdefault(name, {})[NAMES[part]] = tensor.clone()  # out of the file: memory figures compare
        if trained_on != (found := f"{BASE}{base_hash(folder)}"):
            raise IntegrityError(f"{folder.name}: its adapter belongs to the base {trained_on}, found {found}")
        for name, tensors in parts.items():
            layer = LoraLinear.of(
                model.get_submodule(name),
                tensors["lora_A"],
                tensors["lora_B"],
                tensors.get("magnitude"),
                alpha=float(alpha),
                rslora=bool(rslora),
                dtype=architecture.dtype(model),
            )
            architecture.put(model, name, layer)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise IntegrityError(f"{folder.name}: no readable adapter ({error}); build the artifact again") from error


def base_hash(folder: Path) -> str:
    """Return the sha256 over the weight files of the base in a folder, one after the other."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while piece := file.read(2**20):
                total.update(piece)
    return total.hexdigest()


def _config(model: nn.Module, adapters: Mapping[str, LoraLinear], base: str) -> dict[str, Any]:
    """Return what peft reads of an adapter; ``init_lora_weights`` tells it to leave the base as it is."""
    one = next(iter(adapters.values()))
    return {
        "peft_type": "LORA",
        "auto_mapping": {"base_model_class": type(model).__name__, "parent_library": type(model).__module__},
        "base_model_name_or_path": f"{BASE}{base}",
        "r": one.rank,
        "lora_alpha": int(one.alpha) if one.alpha == int(one.alpha) else one.alpha,
        "use_rslora": one.rslora,
        "use_dora": one.dora,
        "target_modules": _targets(model, set(adapters)),
        "fan_in_fan_out": isinstance(one.base, Conv1D),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(model: nn.Module, names: set[str]) -> list[str]:
    """Return what peft finds just these layers by: their names within a block or, where others end so, in full."""
    blocks = [block for block, _ in architecture.named_blocks(model)]
    within = {name.removeprefix(f"{block}.") for name in names for block in blocks if name.startswith(f"{block}.")}
    reached = {
        name
        for name, _ in model.named_modules()
        if any(name == ending or name.endswith(f".{ending}") for ending in within)
    }
    return sorted(within if reached == names else names)
