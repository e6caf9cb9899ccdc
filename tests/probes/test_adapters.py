"""An adapter beside its base: its bytes count, its base's codes and zeros are what was claimed, nothing is flagged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from squeeze.artifacts import adapter
from squeeze.artifacts import format as artifact
from squeeze.layers.contract import dtype_name, matrices
from squeeze.layers.lora import MOST_FLOATS, LoraLinear, features
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import arithmetic, size
from squeeze.probes.inspection import Inspection, inspect
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.bitsandbytes import Float4
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.smoothquant import SmoothQuant
from tests.tiny import tiny_subject

PROTOCOL = {"prompt_tokens": 16, "batch_sizes": [1]}
TEXT = (torch.arange(64) * 7 % 251)[None]
RANK = 2  # of more, float32 adapters of these small layers would be larger than codes of 2 bits


def adapted(subject: Subject, rank: int = RANK) -> Subject:
    generator = torch.Generator().manual_seed(0)
    dtype = architecture.dtype(subject.model)
    for name, layer in list(matrices(subject.model)):
        rows, columns = features(layer)
        pair = torch.randn(rank, columns, generator=generator) / 8, torch.randn(rows, rank, generator=generator) / 8
        beside = LoraLinear.of(layer, *(tensor.to(dtype) for tensor in pair), alpha=8, dtype=dtype)
        architecture.replace(subject.model, name, beside)
    return subject


def look(subject: Subject, folder: Path) -> Inspection:
    artifact.save(subject, folder / "own")
    artifact.save(tiny_subject("llama", dtype_name(subject.model.dtype)), folder / "baseline")
    return inspect(folder / "own", folder / "baseline", Eager("cpu", 1).load(folder / "own"), PROTOCOL, TEXT)


def plain(subject: Subject) -> Subject:
    return subject


def in_two_bits(subject: Subject) -> Subject:
    return RoundToNearest(2, 32, symmetric=True).apply(subject, CalibrationText.empty())


def in_nf4(subject: Subject) -> Subject:
    return Float4("nf4", False).apply(subject, CalibrationText.empty())


def pruned(subject: Subject) -> Subject:
    return Magnitude(0.5).apply(subject, CalibrationText.empty())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", [plain, in_two_bits, in_nf4, pruned])
def test_an_honest_one_is_counted_and_not_flagged(base: Any, dtype: str, tmp_path: Path) -> None:
    bare = look(base(tiny_subject("llama", dtype)), tmp_path / "bare")
    found = look(adapted(base(tiny_subject("llama", dtype))), tmp_path / "adapted")
    assert found.mismatches == []
    numbers = sum(RANK * sum(features(layer)) for _, layer in matrices(tiny_subject("llama").model))
    width = 4 if dtype == "float32" else 2
    weights = found.figures["block_weights"]
    grown = found.figures["block_effective_bits"] - bare.figures["block_effective_bits"]
    assert grown == pytest.approx(8 * width * numbers / weights)
    assert found.figures["bytes_by_kind"]["adapter"] == width * numbers
    assert found.figures["adapter_bytes"] > width * numbers
    assert found.figures["bytes"] - bare.figures["bytes"] >= found.figures["adapter_bytes"]
    assert "adapter_bytes" not in bare.figures
    for figure in ("sparsity", "levels", "parameters", "block_weights", "prefill_operations", "compute_real"):
        assert found.figures[figure] == bare.figures[figure], figure
    assert found.figures["running_bits"] > bare.figures["running_bits"]
    assert found.figures["memory_real"] is (base in (in_two_bits, in_nf4))


@pytest.mark.parametrize("rank", [4, 8])
def test_beside_integers_a_large_one_makes_a_layer_of_floats_and_says_so(rank: int, tmp_path: Path) -> None:
    """Of 32 x 64 weights: 8 times 96 multiplications are more than a quarter of theirs."""
    in_integers = SmoothQuant(0.5).apply(tiny_subject("llama", "bfloat16"), CalibrationText(TEXT))
    found = look(adapted(in_integers, rank), tmp_path)
    assert found.mismatches == []
    assert found.figures["compute_real"] is (rank == 4)
    assert MOST_FLOATS == arithmetic.LEFT


def test_its_bytes_are_all_counted_whatever_they_are_for(tmp_path: Path) -> None:
    own, baseline = tmp_path / "own", tmp_path / "baseline"
    artifact.save(adapted(tiny_subject("llama", "bfloat16")), own)
    artifact.save(tiny_subject("llama", "bfloat16"), baseline)
    before = size.figures(own, baseline)
    path = own / adapter.FOLDER / adapter.WEIGHTS
    save_file({**load_file(path), "more": torch.zeros(100_000, dtype=torch.uint8)}, path)
    after = size.figures(own, baseline)
    assert after["bytes"] - before["bytes"] >= 100_000
    assert after["adapter_bytes"] - before["adapter_bytes"] >= 100_000
    assert sum(after["bytes_by_kind"].values()) == after["bytes_on_disk"]


def test_codes_wider_than_claimed_are_caught_under_an_adapter(tmp_path: Path) -> None:
    found = look(adapted(in_two_bits(tiny_subject("llama", "bfloat16"))).claiming(bits=1), tmp_path)
    assert found.mismatches == ["claimed 1 bits, stored 2.50 a weight (0% left dense)"]
