"""Files appear whole or not at all."""

import hashlib
import os
from pathlib import Path

import pytest

from squeeze.core import files
from squeeze.core.errors import SqueezeError
from squeeze.core.hashing import sha256


def test_written_content_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    files.write_atomically(path, b"one")
    files.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    files.write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_the_user_lets_them_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_atomically(tmp_path / "file.json", b"shared")
    finally:
        os.umask(before)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o644


def test_hash_and_total(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"12345")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert files.total_bytes(tmp_path.iterdir()) == 8


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read_given(tmp_path / "file", 5) == b"12345"
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
        ("proc", 9, "has more than 9 bytes, expected at most that"),
    ):
        with pytest.raises(SqueezeError, match=words):
            files.read_given(tmp_path / name, most)
