"""Train linear layers on a float32 master weight, multiplied with as the finished layer will have it.

A step of training is smaller than what bfloat16 can tell apart; in the master such steps add up (Micikevicius et al.
2017, "Mixed Precision Training", arXiv:1710.03740, section 3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.layers.contract import float_linears, linear
from squeeze.models import architecture


class MasterLinear(nn.Module):
    """Multiply as y = x view(W)^T + b. W: (out_features, in_features) float32, trained; b stays as it is.

    view: from W to what is multiplied with, of the same shape, in the model's dtype.
    """

    def __init__(self, layer: nn.Module, view: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(architecture.weight(layer).to(torch.float32, copy=True).contiguous())
        self.bias = architecture.bias(layer)
        self.view = view

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        return F.linear(inputs, self.view(self.weight), self.bias)


class Held(nn.Module):
    """Hold the master in ``dtype``: what training leaves when nothing is compressed."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the master in ``dtype``: (out_features, in_features) float32 -> ``dtype``."""
        return weight.to(self.dtype)


def same_tensors(model: nn.Module) -> nn.Module:
    """Return another model over the same parameters and buffers: layers replaced in one are kept in the other."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


@contextmanager
def mastered(model: nn.Module) -> Iterator[dict[str, MasterLinear]]:
    """Hold every linear layer of the blocks as its master within the body; yield the masters by the layers' full names.

    Afterwards the layers that were there are there again, with the weights that the masters have come to, in the
    model's dtype. An exception leaves the masters where they are: nobody saves a training that failed.
    Raises Unsupported, before anything has changed, for a model without such layers (``contract.float_linears``).
    """
    dtype = architecture.dtype(model)
    layers = {name: model.get_submodule(name) for name in float_linears(model)}
    masters = {name: MasterLinear(layer, Held(dtype)) for name, layer in layers.items()}
    for name, master in masters.items():
        architecture.replace(model, name, master)
    yield masters
    for name, layer in layers.items():
        architecture.weight(layer).copy_(masters.pop(name).weight.detach())
        architecture.replace(model, name, layer)


@contextmanager
def settled(model: nn.Module, masters: Mapping[str, MasterLinear]) -> Iterator[None]:
    """Multiply with what the masters are now within the body, cast once and not again in each of many forwards.

    masters: those of ``mastered``. The outputs are the same, bit for bit; no gradient reaches a master.
    """
    with torch.no_grad():
        for name, master in masters.items():
            architecture.replace(model, name, linear(master.view(master.weight).detach(), master.bias))
    try:
        yield
    finally:
        for name, master in masters.items():
            architecture.replace(model, name, master)
