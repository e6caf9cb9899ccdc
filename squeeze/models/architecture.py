"""Find the parts of a transformer: its blocks, linear layers and head, for every architecture alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import Unsupported

# Where each architecture keeps its list of transformer blocks, below the base model.
BLOCK_LISTS = ("layers", "h", "decoder.layers", "encoder.layer", "transformer.layer", "language_model.layers")
# Where it keeps the norm between its last block and its head, likewise.
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "decoder.final_layer_norm", "language_model.norm")


def base_model(model: nn.Module) -> nn.Module:
    """Return the transformer without its head (the model itself where it has none)."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks, in the order in which they run.

    Raises Unsupported for a model whose blocks lie in none of the places of ``BLOCK_LISTS``.
    """
    return [block for _, block in named_blocks(model)]


def named_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the transformer blocks with their full names, such as ``model.layers.0``."""
    names = {module: name for name, module in model.named_modules()}
    base = base_model(model)
    for path in BLOCK_LISTS:
        found = _descend(base, path)
        if isinstance(found, nn.ModuleList):
            return [(names[block], block) for block in found]
    raise Unsupported(f"{type(model).__name__}: no transformer blocks found under any of {', '.join(BLOCK_LISTS)}")


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers below a module by relative name: ``nn.Linear`` and GPT-2's ``Conv1D``."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def block_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Return all linear layers within the blocks by full name; embeddings and head are not among them."""
    return {
        f"{block_name}.{name}": layer
        for block_name, block in named_blocks(model)
        for name, layer in linears(block).items()
    }


def weight(layer: nn.Module) -> torch.Tensor:
    """Return a linear layer's weight as (out_features, in_features): a view, so writing to it writes to the layer."""
    stored: torch.Tensor = layer.weight.data  # type: ignore[assignment]
    return stored.T if isinstance(layer, Conv1D) else stored


def shape(layer: Any) -> tuple[int, int]:
    """Return a linear layer's (out_features, in_features), compressed or not."""
    return (layer.nf, layer.nx) if isinstance(layer, Conv1D) else (layer.out_features, layer.in_features)


def bias(layer: nn.Module) -> torch.Tensor | None:
    """Return a linear layer's bias, (out_features,), or None."""
    stored = getattr(layer, "bias", None)
    return None if stored is None else stored.data


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place that the full name denotes, and wherever else the layer stands that stood there.

    So layers that blocks share stay shared, whatever becomes of them.
    """
    before = model.get_submodule(name)
    places = [place for place, module in model.named_modules(remove_duplicate=False) if module is before]
    for place in places:
        put(model, place, layer)


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place that the full name denotes, and nowhere else."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def head(model: nn.Module) -> nn.Module:
    """Return the output head that maps hidden states to logits.

    Raises Unsupported for a model that has none (an encoder without a language-modelling head).
    """
    found = model.get_output_embeddings()  # type: ignore[operator]
    if found is None:
        raise Unsupported(f"{type(model).__name__} has no language-modelling head")
    return found  # type: ignore[no-any-return]


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm between the last block and the head.

    Raises Unsupported for a model that has none in any of the places of ``FINAL_NORMS``.
    """
    base = base_model(model)
    for path in FINAL_NORMS:
        found = _descend(base, path)
        if isinstance(found, nn.Module):
            return found
    raise Unsupported(f"{type(model).__name__}: no final norm found under any of {', '.join(FINAL_NORMS)}")


def form(model: nn.Module) -> Any:
    """Return the form of a model that its configuration alone does not describe (``layers.sliced``); None, mostly."""
    return getattr(model, "form", None)


def text_config(model: nn.Module) -> Any:
    """Return the configuration of what predicts tokens: the model's own, or that of the language model within it."""
    config: Any = model.config
    return config.get_text_config()


def reads_pictures(model: nn.Module) -> bool:
    """Tell whether a model reads pictures beside text: as transformers says what goes into it."""
    return "image" in getattr(model, "input_modalities", ())


def is_classifier(model: nn.Module) -> bool:
    """Tell whether a model tells the classes of whole texts apart: as transformers calls such models."""
    return type(model).__name__.endswith("ForSequenceClassification")


def classes(model: nn.Module) -> int:
    """Return how many classes a classifier tells apart."""
    return int(model.config.num_labels)  # type: ignore[union-attr,arg-type]


def dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that a model computes in."""
    return model.dtype  # type: ignore[return-value]


def last_hidden_state(model: nn.Module, **inputs: Any) -> torch.Tensor:
    """Return what the head is applied to: (batch, tokens, hidden)."""
    return base_model(model)(**inputs).last_hidden_state  # type: ignore[no-any-return]


def _descend(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
