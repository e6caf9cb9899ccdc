"""Files appear whole or not at all; what is no file, or too large, is not read."""

import hashlib
import os
from pathlib import Path

import pytest

from squeeze.core import files
from squeeze.core.errors import IntegrityError
from squeeze.core.files import read_small
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


def test_a_small_file_is_read_whole_and_through_a_link(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("x")
    assert read_small(tmp_path / "x", 5) == read_small(tmp_path / "link", 9) == b"12345"
    (tmp_path / "empty").touch()
    assert read_small(tmp_path / "empty", 0) == b""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(bytes(101)), "has 101 bytes, expected at most 100"),
        (Path.mkdir, "is a directory, expected a regular file"),
        (os.mkfifo, "is a FIFO, expected a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a regular file"),
        (
            lambda path: path.symlink_to("/proc/self/smaps"),
            "says that it has 0 bytes, but has others, expected a regular file",
        ),
    ],
)
def test_what_is_no_small_file_is_refused(tmp_path, make, words):
    make(tmp_path / "x")
    with pytest.raises(IntegrityError, match=f"^{words}$"):
        read_small(tmp_path / "x", 100)


@pytest.mark.parametrize("target", ["nothing", "x"])
def test_a_link_to_nothing_is_as_a_file_that_is_not_there(tmp_path, target):
    (tmp_path / "x").symlink_to(target)
    with pytest.raises(OSError, match=r"No such file|Too many levels"):
        read_small(tmp_path / "x", 100)


def test_a_file_that_became_a_fifo_meanwhile_does_not_block(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "x")
    seen = tmp_path / "file"
    seen.touch()
    before = seen.stat()
    monkeypatch.setattr(os, "stat", lambda *_, **__: before)
    with pytest.raises(IntegrityError, match="is a FIFO"):
        read_small(tmp_path / "x", 100)
