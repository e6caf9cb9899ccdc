"""A package index in a folder: toy wheels that pip really downloads, without a network."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

REQUIREMENT = "toy-assets==1.0"


def build_wheel(folder: Path, members: Mapping[str, bytes]) -> Path:
    """A wheel of REQUIREMENT that holds `members`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy_assets-1.0-py3-none-any.whl"
    metadata = {
        "toy_assets-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-assets\nVersion: 1.0\n",
        "toy_assets-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_assets-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **metadata}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find wheels in `folder` and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
