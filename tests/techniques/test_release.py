"""A float layer's memory is free as soon as its compressed one has taken its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from squeeze.artifacts.build import resolve_step
from squeeze.models import architecture
from squeeze.request.expand import cells
from squeeze.techniques.calibration import CalibrationText
from tests.tiny import tiny_subject

BLOCK = 7  # layers of a block, which may be solved together
# How many float layers may still be held beside those that nothing has replaced.
IN_FLIGHT = {
    "rtn": 1,
    "rtn_mixed": 1,
    "hqq": 1,
    "kmeans": 1,
    "magnitude": 1,
    "torch_dynamic": 1,
    "torchao_int8": 1,
    "smoothquant": 1,
    "static_int8": 1,
    "awq": 1,
    "wanda": 1,
    "gptq": BLOCK,
    "sparsegpt": 1,
}


@pytest.mark.parametrize("name", IN_FLIGHT)
def test_float_weights_go_one_after_the_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = cells(["model=tiny_llama", f"technique={name}", "group_size=32"])
    subject = tiny_subject("llama")
    held = [
        StorageWeakRef(layer.weight.untyped_storage()) for layer in architecture.block_linears(subject.model).values()
    ]
    replaced, replace = [], architecture.replace

    def watched(model: nn.Module, layer_name: str, layer: nn.Module) -> None:
        replace(model, layer_name, layer)
        replaced.append(layer_name)
        alive = sum(not weight.expired() for weight in held)
        assert alive <= len(held) - len(replaced) + IN_FLIGHT[name], f"{alive} float weights after {len(replaced)}"

    monkeypatch.setattr(architecture, "replace", watched)
    calibration = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))
    resolve_step(cell.technique["steps"][0]).apply(subject, calibration)
    assert len(replaced) == len(held)
    assert all(weight.expired() for weight in held)
