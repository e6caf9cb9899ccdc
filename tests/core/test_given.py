"""What a user gives is read if it is a file and small enough; all else is told apart."""

import os
from pathlib import Path

import pytest

from squeeze.core.errors import SqueezeError
from squeeze.core.given import read_given


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_given(tmp_path / "file", 5) == b"12345"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "proc").symlink_to("/proc/self/maps")  # which says that it has no bytes
    for name, most, words in (
        ("file", 4, "file has 5 bytes, expected at most 4"),
        ("fifo", 9, "fifo is a FIFO, expected a regular file"),
        ("endless", 9, "endless is a device, expected a regular file"),
        ("dangling", 9, "dangling is a link to nothing"),
        ("gone", 9, "gone cannot be read .No such file or directory., expected a file"),
        ("", 9, "is a directory, expected a regular file"),
        ("proc", 9, "says that it has 0 bytes, but has others"),
    ):
        with pytest.raises(SqueezeError, match=words):
            read_given(tmp_path / name, most)
