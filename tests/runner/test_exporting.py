"""A format is written with the interpreter that has what it takes, and whatever goes wrong there is said here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.runner import exporting
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.kmeans import KMeans
from tests.foreign import named, offer, requirements, wheel
from tests.tiny import tiny_subject


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact; and an engine whose environment is called as a format is."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheel(tmp_path / "index")
    offer(tmp_path / "site", monkeypatch, {"gguf": requirements(tmp_path / "index")})
    artifact.save(tiny_subject("llama"), tmp_path / "artifact")
    return tmp_path / "artifact"


def test_it_is_written_where_the_engine_lies(source: Path, tmp_path: Path) -> None:
    assert named("gguf").existing() is None
    exporting.export("gguf", source, tmp_path / "exported")
    assert named("gguf").existing() is not None
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["model.gguf"]


def test_what_goes_wrong_there_is_one_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    artifact.save(KMeans(4, None).apply(tiny_subject("llama"), CalibrationText.empty()), tmp_path / "codebooks")
    with pytest.raises(SqueezeError, match=r"no place for a CodebookLinear.*in the environment gguf\)$") as refused:
        exporting.export("gguf", tmp_path / "codebooks", tmp_path / "exported")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "exported").exists()


def test_where_there_is_no_such_environment_it_is_written_here(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no layer is packed"):
        exporting.export("gptq", source, tmp_path / "exported")
