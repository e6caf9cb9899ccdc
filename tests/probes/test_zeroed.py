"""Zeros in layers' inputs are counted; a threshold that has no part in the output is not believed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.layers import thresholded
from squeeze.layers.contract import prepare_layers
from squeeze.layers.thresholded import ColumnsLinear, Thresholded
from squeeze.models import architecture
from squeeze.probes import decoding
from squeeze.probes.inspection import Inspection, inspect
from squeeze.probes.zeroed import Zeroed, zeroed
from squeeze.runtimes.compiled import Compiled
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.teal import TEAL
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

PROTOCOL = {"prompt_tokens": 16, "batch_sizes": [1]}
CALIBRATION = CalibrationText(torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0)))
TEXT = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1))


def looked_at(folder: Path, name: str, *steps: Any, dtype: str = "bfloat16", **claims: Any) -> Inspection:
    subject = tiny_subject(name, dtype)
    for step in steps:
        subject = step.apply(subject, CALIBRATION)
    artifact.save(subject.claiming(**claims), folder / "own")
    artifact.save(tiny_subject(name, dtype), folder / "baseline")
    return inspect(folder / "own", folder / "baseline", Eager("cpu", 1).load(folder / "own"), PROTOCOL, TEXT)


def not_read(found: Inspection) -> float:
    """Bytes in memory that one decoding step does not read: of the embedding, and what is skipped."""
    return found.figures["live_bytes"] - found.figures["bytes_per_token"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_honest_row_is_found_to_be_what_it_claims(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholded, "SKIPS_OF", 0)
    found = looked_at(tmp_path, name, TEAL(0.5), dtype=dtype)
    assert found.mismatches == []
    assert found.figures["input_sparsity"] == pytest.approx(0.5, abs=0.03)
    assert (found.figures["bytes_real"], found.figures["memory_real"], found.figures["compute_real"]) == (False,) * 3
    plain = looked_at(tmp_path / "plain", name, dtype=dtype)
    layers = architecture.block_linears(tiny_model(name, dtype)).values()
    matrices = sum(architecture.weight(layer).nbytes for layer in layers)
    assert not_read(found) - not_read(plain) == pytest.approx(0.5 * matrices, rel=0.06)
    running = Eager("cpu", 1).load(tmp_path / "own").subject.model
    assert decoding.difference(running, TEXT).mismatches() == []


def test_of_packed_weights_too(tmp_path: Path) -> None:
    found = looked_at(tmp_path, "llama", TEAL(0.5), RoundToNearest(4, 32, symmetric=True))
    assert found.mismatches == []
    assert found.figures["input_sparsity"] == pytest.approx(0.5, abs=0.03)


def test_a_share_that_is_not_there_is_found(tmp_path: Path) -> None:
    found = looked_at(tmp_path, "llama", TEAL(0.4), input_sparsity=0.6)
    [said] = found.mismatches
    assert re.fullmatch(r"claimed 60\.0% zeros in the layers' inputs, found (39|40|41)\.\d%", said)


def test_a_claim_without_any_layer_is_found(tmp_path: Path) -> None:
    found = looked_at(tmp_path, "llama", input_sparsity=0.5)
    assert "input_sparsity" not in found.figures
    assert found.mismatches == ["claimed 50.0% zeros in the layers' inputs, found 0.0%"]


class Pretender(Thresholded):
    """Says that it zeroes what is small, and does not."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs)


def with_layers(kind: type[Thresholded], names: list[str] | None = None) -> nn.Module:
    model = tiny_model("llama")
    for name, plain in architecture.block_linears(model).items():
        if names is None or name in names:
            weight = architecture.weight(plain)
            made = kind.of(ColumnsLinear.of(weight, None), tuple(weight.shape), 0.6745, weight.dtype)
            architecture.replace(model, name, made)
    return model


def test_a_threshold_that_only_stands_there_is_not_believed() -> None:
    assert zeroed(with_layers(Pretender), TEXT) == Zeroed()
    assert zeroed(with_layers(Thresholded), TEXT).share > 0.4


def test_layers_count_by_the_weights_that_their_inputs_meet() -> None:
    """One matrix of 128 x 64 in a model of 2 x (3 x 64 x 128 + 2 x 64 x 64 + 2 x 32 x 64)."""
    name = "model.layers.0.mlp.up_proj"
    model = with_layers(Thresholded, [name])
    read: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    found = zeroed(model, TEXT).share
    share = float((read[0].abs() <= 0.6745).float().mean())
    assert found == pytest.approx(share * 128 * 64 / (2 * (3 * 64 * 128 + 2 * 64 * 64 + 2 * 32 * 64)))


def test_a_layer_in_several_places_counts_in_each() -> None:
    first, second = (f"model.layers.{number}.mlp.up_proj" for number in (0, 1))
    model = with_layers(Thresholded, [first])
    once = zeroed(model, TEXT).share
    architecture.replace(model, second, model.get_submodule(first))
    assert zeroed(model, TEXT).share > 1.5 * once


def test_what_blocks_share_has_zeros_as_claimed(tmp_path: Path) -> None:
    found = looked_at(tmp_path, "llama", SharedBlocks(), TEAL(0.5))
    assert found.figures["input_sparsity"] == pytest.approx(0.5, abs=0.03)
    assert not [said for said in found.mismatches if "inputs" in said]


def test_a_matrix_behind_two_thresholds_counts_once() -> None:
    name = "model.layers.0.mlp.up_proj"
    model = with_layers(Thresholded, [name])
    expected = zeroed(model, TEXT).share
    layer = Thresholded.of(model.get_submodule(name), (128, 64), 0.6745, torch.float32)
    architecture.replace(model, name, layer)
    assert zeroed(model, TEXT).share == pytest.approx(expected)


def test_tokens_of_too_few_zeros_leave_no_bytes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholded, "SKIPS_OF", 0)
    model = with_layers(Thresholded, ["model.layers.0.mlp.up_proj"])
    prepare_layers(model)
    found = zeroed(model, TEXT)
    all_bytes = 4 * 2 * (3 * 64 * 128 + 2 * 64 * 64 + 2 * 32 * 64)
    assert found.unread == pytest.approx(found.share * all_bytes, rel=0.05)
    monkeypatch.setattr(thresholded, "SKIPS_FROM", {torch.float32: 0.99})
    assert zeroed(model, TEXT) == Zeroed(found.share, 0)


def test_a_compiled_decode_step_reads_all_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholded, "SKIPS_OF", 0)
    eager = looked_at(tmp_path, "llama", TEAL(0.5))
    engine = Compiled("cpu", 1).load(tmp_path / "own")
    compiled = inspect(tmp_path / "own", tmp_path / "baseline", engine, PROTOCOL, TEXT)
    assert not_read(compiled) == not_read(looked_at(tmp_path / "plain", "llama"))
    assert not_read(eager) > not_read(compiled)


def test_a_model_without_thresholds_has_no_figure() -> None:
    found = zeroed(tiny_model("llama"), TEXT)
    assert found.figures() == {}
    assert found.mismatches({"bits": 4}) == []
