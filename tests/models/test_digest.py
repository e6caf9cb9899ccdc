"""Digests: of all that a model computes from, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from squeeze.models.digest import digest
from tests.tiny import tiny_model

TOKENS = torch.arange(6).reshape(2, 3)


def _rounded(model: Any) -> None:
    model.model.norm.weight.data = model.model.norm.weight.data.to(torch.bfloat16)


CHANGES: dict[str, Callable[[Any], None]] = {
    "a weight": lambda model: model.model.layers[1].mlp.up_proj.weight.data[0, 0].add_(1),
    "a dtype": _rounded,
    "the configuration": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_computed_from_changes_it(change: str) -> None:
    model = tiny_model("llama")
    before = digest(model, "1", tokens=TOKENS)
    assert before == digest(tiny_model("llama").requires_grad_(True), "1", tokens=TOKENS.clone())
    CHANGES[change](model)
    assert digest(model, "1", tokens=TOKENS) != before


def test_tensors_and_version_are_part_of_it() -> None:
    model = tiny_model("llama")
    found = {
        digest(model, "1", tokens=TOKENS),
        digest(model, "2", tokens=TOKENS),
        digest(model, "1", tokens=TOKENS + 1),
        digest(model, "1", tokens=TOKENS.reshape(3, 2)),
        digest(model, "1", others=TOKENS),
    }
    assert len(found) == 5
    assert {len(each) for each in found} == {32}
