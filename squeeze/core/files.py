"""Write files that are either wholly there or not there at all, and read those of strangers."""

import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from squeeze.core.errors import SqueezeError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, a crash or a full disk never sees a part of it.

    The bytes go to a temporary file in the same folder, are flushed to the disk and renamed over `path`.
    Raises OSError (folder not writable, disk full) and then leaves no temporary file behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new name in the folder of `path`; what the body writes there takes its place when the body ends well.

    Raises OSError (folder not writable, disk full); whatever is raised, no temporary file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
    try:
        yield temporary  # opened by the body: with the permissions that the user gives to new files
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def total_bytes(paths: Iterable[Path]) -> int:
    """Sum the files' lengths in bytes, as the file system reports them."""
    return sum(path.stat().st_size for path in paths)


def read_regular(path: Path, largest: int) -> bytes:
    """Return the content of a regular file of at most ``largest`` bytes; no more than that is ever read.

    Raises SqueezeError, with the path, for a link to nothing, a folder, a FIFO or a device (which is not opened), for a
    file that may not be read, and for a larger one.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SqueezeError(f"{path}: {_kind(path)}, expected a regular file; remove it or put a file in its place")
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        reason = "a link to nothing" if path.is_symlink() else error.strerror or str(error)
        raise SqueezeError(f"{path}: {reason}; expected a file that can be read") from error
    if len(content) > largest:
        raise SqueezeError(f"{path}: {path.stat().st_size:,} bytes, expected at most {largest:,}; give a smaller file")
    return content


def _kind(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a FIFO" if path.is_fifo() else "a device or a socket"
