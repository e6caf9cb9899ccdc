"""Tell what the layers of a model have that its configuration does not say, and give a fresh model the same.

A configuration of transformers has one width of MLPs and one number of heads for all blocks, and one word on biases for
all layers. Where pruning leaves blocks sizes of their own (FLAP), or heads fewer than hidden size / size of a head
(GPT-2), an artifact states them, and ``give`` makes the model that the weights fit. Such an artifact loads with squeeze
alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import IntegrityError, Unsupported, shown
from squeeze.models import architecture

Sizes = Mapping[str, Mapping[str, int]]  # full name of a module -> what it calls its sizes -> them
# What attention modules call sizes that grow with the number of their heads, and read when they run.
OF_HEADS = ("num_heads", "split_size")
OF_LAYERS = {"out_features", "in_features", "bias"}


def stated(model: nn.Module) -> dict[str, dict[str, int]]:
    """Return the sizes of the modules that a model made of this one's configuration has otherwise, by full name.

    Of a linear layer, compressed or not: out_features, in_features and bias, whether there is one. Of attention: what
    it calls sizes that grow with its heads. Empty for a model that its configuration describes. Layers whose place is
    not one of a plain layer are left out: what stands there is described on its own.
    """
    kind: Any = type(model)
    with torch.device("meta"):
        described = kind._from_config(copy.deepcopy(model.config), dtype=architecture.dtype(model))
    expected = {name: _sizes(module) for name, module in described.named_modules()}
    modules = model.named_modules(remove_duplicate=False)
    found = {name: _sizes(module) for name, module in modules if expected.get(name)}
    return {name: own for name, own in found.items() if own and own != expected[name]}


def claims(model: nn.Module) -> dict[str, str]:
    """Return the claim of a model that no configuration describes: what loads it. Nothing for any other."""
    return {"loads_with": "squeeze"} if stated(model) else {}


def check_described(model: nn.Module) -> None:
    """Raise Unsupported for a model that no configuration describes: libraries make its layers anew, from that."""
    if found := stated(model):
        raise Unsupported(
            f"{next(iter(found))} has a size that no configuration of transformers says; expected blocks that are alike"
        )


def give(model: nn.Module, sizes: Sizes) -> None:
    """Give a model, fresh from its configuration, the sizes that ``stated`` has found; their weights are empty.

    Layers that become others lie on the meta device until weights are assigned. Raises IntegrityError for modules that
    are not there, or have no such sizes, and for sizes that are none.
    """
    if not isinstance(sizes, Mapping):
        raise IntegrityError(f"own_sizes is {shown(sizes)}, expected sizes by module; build the artifact again")
    known = dict(model.named_modules())
    for name, own in sizes.items():
        module = known.get(name, nn.Module())
        if not _sizes(module) or not isinstance(own, Mapping) or _sizes(module).keys() != own.keys():
            raise IntegrityError(f"own_sizes: {name!r} has no such sizes as {shown(own)}; build the artifact again")
        for word, size in own.items():
            if not isinstance(size, int) or size < (0 if word == "bias" else 1):
                raise IntegrityError(f"own_sizes: {name}.{word} is {shown(size)}, expected a number; build it again")
        if type(module) in (nn.Linear, Conv1D):
            architecture.replace(model, name, _empty(type(module), **own))
        else:
            for word, size in own.items():
                setattr(module, word, size)


def _sizes(module: nn.Module) -> dict[str, int]:
    """Return the sizes that a module may have of its own; none for one that is no linear layer and no attention."""
    if isinstance(module, Conv1D) or all(hasattr(module, name) for name in OF_LAYERS):
        rows, columns = architecture.shape(module)
        return {"out_features": rows, "in_features": columns, "bias": int(getattr(module, "bias", None) is not None)}
    return {name: size for name in OF_HEADS if isinstance(size := getattr(module, name, None), int)}


def _empty(kind: Any, *, out_features: int, in_features: int, bias: int) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = Conv1D(out_features, in_features) if kind is Conv1D else kind(in_features, out_features, bias)
    return made
