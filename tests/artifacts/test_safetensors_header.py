"""Headers of safetensors files: as the library reads them, in an order that no process decides."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from squeeze.artifacts import safetensors_header


def test_what_is_encoded_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = safetensors_header.encode({"x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}})
    assert len(header) % 8 == 0
    path.write_bytes(header + bytes([1, 2, 3]))
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("x").tolist() == [1, 2, 3]
    assert safetensors_header.read(path)[1] == len(header)


def test_metadata_are_sorted_and_nothing_else_moves(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.arange(5)}, path, metadata={name: name.upper() for name in "qwertzuiop"})
    before = path.stat().st_size
    safetensors_header.sort_metadata(path)
    entries, _ = safetensors_header.read(path)
    assert list(entries["__metadata__"]) == sorted("qwertzuiop")
    assert path.stat().st_size == before
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("x").tolist() == [0, 1, 2, 3, 4]
        assert file.metadata()["q"] == "Q"


@pytest.mark.parametrize("content", [b"", b"\xff" * 30, (2).to_bytes(8, "little") + json.dumps([]).encode()])
def test_what_has_no_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - json's and ours
        safetensors_header.read(path)
