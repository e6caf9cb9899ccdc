"""Each export is made once, and anew where anything that it depends on is another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from squeeze.artifacts import format as artifact
from squeeze.artifacts import keys
from squeeze.artifacts.exports import cached, gptq
from squeeze.core.cache import cache_root
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact of 4 bits."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    return saved(tmp_path / "artifact")


def saved(folder: Path, bits: int = 4) -> Path:
    artifact.save(
        RoundToNearest(bits, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty()), folder
    )
    return folder


def test_it_is_what_the_exporter_writes_and_is_made_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached.served(source) is None
    folder = cached.exported(source, "gptq")
    assert folder.is_relative_to(cache_root() / "exports")
    assert any(name.endswith("qweight") for name in load_file(folder / "model.safetensors"))
    monkeypatch.setattr(gptq, "to_gptq", lambda *_: pytest.fail("it is there"))
    assert cached.exported(source, "gptq") == folder == cached.served(source)


def test_another_artifact_format_option_or_exporter_is_another_export(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {cached.exported(source, "gptq"), cached.exported(source, "compressed-tensors")}
    made.add(cached.exported(saved(tmp_path / "eight", 8), "gptq"))
    written: list[dict[str, int]] = []

    def write(_: Path, folder: Path, **options: int) -> None:
        folder.mkdir()
        written.append(options)

    monkeypatch.setattr(gptq, "to_gptq", write)
    made |= {cached.exported(source, "gptq", width=width) for width in (1, 2)}
    with monkeypatch.context() as patch:
        patch.setattr(keys, "code_version", lambda modules: f"other code of {modules}")
        made.add(cached.exported(source, "gptq"))
    with monkeypatch.context() as patch:
        patch.setattr(keys, "library_versions", lambda _: {"torch": "another"})
        made.add(cached.exported(source, "gptq"))
    assert len(made) == 7
    assert written == [{"width": 1}, {"width": 2}, {}, {}]


def test_an_equal_artifact_elsewhere_has_the_same_export(source: Path, tmp_path: Path) -> None:
    """By its content: whether its build has written down the hash, or nobody has."""
    other = saved(tmp_path / "other")
    (other / keys.BUILD_INFO).write_text(json.dumps({"content_hash": artifact.content_hash(source)}))
    assert cached.exported(other, "gptq") == cached.exported(source, "gptq")
    assert cached.served(tmp_path / "other") == cached.served(source)


def test_what_a_format_cannot_hold_leaves_nothing(source: Path, tmp_path: Path) -> None:
    artifact.save(tiny_subject("llama"), tmp_path / "floats")
    with pytest.raises(Unsupported, match="no layer is packed"):
        cached.exported(tmp_path / "floats", "gptq")
    assert not list((cache_root() / "exports").glob("gptq*"))
    with pytest.raises(SqueezeError, match=r"no format 'gone': there is no gone\.py"):
        cached.exported(source, "gone")
    with pytest.raises(SqueezeError, match="defines neither export nor to_destination"):
        cached.exported(source, "destination")
