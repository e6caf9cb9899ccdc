"""Train linear layers on a float32 master weight, multiplied with as the finished layer will have it.

A step of training is smaller than what bfloat16 can tell apart; in the master such steps add up (Micikevicius et al.
2017, "Mixed Precision Training", arXiv:1710.03740, section 3.1).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

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
