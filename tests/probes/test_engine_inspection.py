"""Of an engine that torch cannot look into, what it reads is weighed, and no more is said than is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports import cached
from squeeze.core.files import total_bytes
from squeeze.probes import engine_inspection, memory, size
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.engines import opaque
from tests.tiny import tiny_subject

UNSEEN = ("compute_real", "running_bits", "bytes_per_token", "prefill_operations", "arithmetic")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An artifact of 4 bits, and the uncompressed model's."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    rounded = RoundToNearest(4, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    artifact.save(rounded, tmp_path / "own")
    artifact.save(tiny_subject("llama"), tmp_path / "baseline")
    return tmp_path / "own", tmp_path / "baseline"


def test_an_engine_that_reads_the_artifact_itself_weighs_what_that_does(folders: tuple[Path, Path]) -> None:
    own, baseline = folders
    found = engine_inspection.figures(own, baseline, opaque(artifact.load(own)), kept_bytes=0)
    weighed = size.figures(own, baseline)
    assert {name: found[name] for name in weighed} == weighed
    assert (found["bytes_real"], found["memory_real"], found["mismatches"]) == (True, True, [])
    assert found["positions"] == 2048
    assert found["inspected"] == engine_inspection.INSPECTED
    assert not found.keys() & set(UNSEEN)


def test_an_export_is_what_its_user_ships(folders: tuple[Path, Path]) -> None:
    own, baseline = folders
    export = cached.exported(own, "gptq")
    found = engine_inspection.figures(own, baseline, opaque(artifact.load(own)), kept_bytes=0)
    assert found["bytes"] == (export / "model.safetensors").stat().st_size != size.figures(own, baseline)["bytes"]
    assert found["bytes_on_disk"] == total_bytes(export.iterdir())
    assert found["effective_bits"] * found["compression_ratio"] == pytest.approx(32)
    assert found["effective_bits"] == pytest.approx(8 * found["bytes"] / found["parameters"])


def test_small_in_memory_is_what_the_engine_says_and_the_process_shows(folders: tuple[Path, Path]) -> None:
    own, baseline = folders
    dense = 4 * size.stored_weights(baseline)
    small, large = opaque(artifact.load(own)), opaque(tiny_subject("llama"))
    for engine, kept, real in (
        (small, memory.HELD_ONCE, True),
        (small, memory.HELD_ONCE + dense, False),
        (large, 0, False),
    ):
        found = engine_inspection.figures(own, baseline, engine, kept)
        assert (found["memory_real"], found["live_bytes"]) == (real, engine.bytes_held)
