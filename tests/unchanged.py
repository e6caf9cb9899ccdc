"""Hold that a refusal came before any work: a model is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The body leaves a model its modules, and its tensors their values, their dtypes and whether they are trained."""
    modules, state = dict(model.named_modules()), {name: each.clone() for name, each in model.state_dict().items()}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    yield
    assert dict(model.named_modules()) == modules
    after = model.state_dict()
    assert {name: each.dtype for name, each in after.items()} == {name: each.dtype for name, each in state.items()}
    assert all(torch.equal(after[name], each) for name, each in state.items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained


def not_loaded() -> nn.Module:
    """A baseline that nobody may ask for yet."""
    raise AssertionError("a teacher was loaded before the request was checked")
