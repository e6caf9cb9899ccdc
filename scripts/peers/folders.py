"""Save artifacts as transformers folders, dense, so that other tools can measure the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_compressed
from squeeze.models.load import load_baseline
from squeeze.models.subject import Subject
from squeeze.request.cell import Cell


def save_uncompressed(cell: Cell, folder: Path) -> Subject:
    """Save the cell's uncompressed model and its tokenizer, bfloat16, and return them."""
    subject = load_baseline(cell.baseline("bfloat16").model)
    _save(subject, folder)
    return subject


def save_dense(cell: Cell, artifact_folder: Path, folder: Path) -> None:
    """Save the artifact's model with each compressed layer multiplied out, in bfloat16.

    Raises Unsupported for a compressed layer in the place of one that is not linear.
    """
    subject = load_baseline(cell.baseline("bfloat16").model)
    densify(subject.model, artifact.load(artifact_folder, "cpu").model)
    _save(subject, folder)


@torch.no_grad()
def densify(model: nn.Module, compressed: nn.Module) -> None:
    """Give an uncompressed model, in place, the parameters that a compressed one of the same architecture stands for.

    Raises Unsupported for a compressed layer in the place of one that is not linear.
    """
    stored = dict(compressed.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        layer = compressed.get_submodule(name)
        if not is_compressed(layer):
            for part, parameter in module.named_parameters(recurse=False):
                parameter.copy_(stored[f"{name}.{part}"])
            continue
        if not isinstance(module, nn.Linear):
            raise Unsupported(f"{name} was a {type(module).__name__}; peers are given compressed linear layers only")
        dequantize: Callable[[], Tensor] = layer.dequantize
        module.weight.copy_(dequantize())


def _save(subject: Subject, folder: Path) -> None:
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
