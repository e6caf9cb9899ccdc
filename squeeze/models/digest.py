"""Hash all that a model computes from: what is known of it by this hash can belong to no other."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def digest(model: nn.Module, version: str, **tensors: Tensor) -> str:
    """Return 32 hex digits of a sha256 over a model's configuration and tensors, further tensors, and torch's version.

    version: of what is known, raised when its meaning changes.
    """
    configuration = model.config.to_json_string()  # type: ignore[union-attr,operator]
    total = hashlib.sha256(f"{version} {torch.__version__} {configuration}".encode())
    for name, tensor in [*model.state_dict().items(), *tensors.items()]:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:32]
