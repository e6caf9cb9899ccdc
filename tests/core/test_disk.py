"""A full disk is told by whatever exception it shows itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from squeeze.core.disk import free_megabytes, is_full_disk


@pytest.mark.promise(17)
@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("4096 requested and 128 written"),
        RuntimeError("disk full: artifacts could not be written (0 MB free)"),
    ],
    ids=str,
)
def test_a_full_disk_is_told(error: Exception) -> None:
    assert is_full_disk(error)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), ValueError("requested and refused"), KeyError(28)])
def test_other_errors_are_none(error: Exception) -> None:
    assert not is_full_disk(error)


def test_what_was_raised_from_one_is_one() -> None:
    error = ValueError("cannot save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_full_disk(error)


def test_the_room_for_what_is_not_there_yet_is_that_of_its_disk(tmp_path: Path) -> None:
    assert free_megabytes(tmp_path / "a" / "b") == pytest.approx(free_megabytes(tmp_path), rel=0.1)
