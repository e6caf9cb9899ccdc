"""Write a model as one GGUF file. What each of its matrices is stored as is for the caller to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.models import architecture, gguf_metadata
from squeeze.models.gguf_names import family, parts
from squeeze.models.subject import Subject

FLOATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Stored:
    """Hold a tensor as a GGUF has it.

    kind: ggml's name of its type, such as ``BF16`` or ``Q4_0``. data: of floats, the floats; else the blocks, (rows,
    bytes of a row) uint8.
    """

    kind: str
    data: Tensor


Weight = Callable[[str, nn.Module], Stored]  # (full name, layer) -> its weight, rows in their order here


def of_floats(tensor: Tensor) -> Stored:
    """Return a tensor of floats as it is; vectors, which llama.cpp adds and multiplies in float32, in float32."""
    data = tensor.detach().float() if tensor.ndim == 1 else tensor.detach()
    return Stored(FLOATS[data.dtype], data)


def plain_weight(_: str, layer: nn.Module) -> Stored:
    """Return the weight of a layer that holds floats."""
    return of_floats(architecture.weight(layer))


def tensors(model: nn.Module, weight: Weight = plain_weight) -> dict[str, Stored]:
    """Return all tensors of a model's GGUF by their names there, rows in llama.cpp's order.

    Raises Unsupported as ``gguf_names.parts`` does, and whatever ``weight`` raises.
    """
    found: dict[str, Stored] = {}
    for part in parts(model):
        layer = model.get_submodule(part.module)
        stored = {"weight": weight(part.module, layer)}
        if (bias := getattr(layer, "bias", None)) is not None:
            stored["bias"] = of_floats(bias)
        for name, each in stored.items():
            ordered = each if part.rows is None else replace(each, data=each.data[part.rows])
            found[f"{part.name}.{name}"] = ordered
    return found


def write(subject: Subject, stored: Mapping[str, Stored], path: Path) -> None:
    """Write a subject's metadata and these tensors to a new file.

    Raises Unsupported as ``gguf_metadata.write`` does; then there is no file.
    """
    import gguf

    writer = gguf.GGUFWriter(path, family(subject.model).name)
    gguf_metadata.write(writer, subject)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, each in stored.items():
        writer.add_tensor(name, _array(each), raw_dtype=gguf.GGMLQuantizationType[each.kind])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _array(stored: Stored) -> Any:
    """Return a tensor as an array, what NumPy has no floats for as bytes."""
    data = stored.data.cpu().contiguous()
    return (data.view(torch.uint8) if data.dtype == torch.bfloat16 else data).numpy()
