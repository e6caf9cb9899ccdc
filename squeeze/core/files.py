"""Write files that are either wholly there or not there at all; read only what is a file and small enough."""

import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from squeeze.core.errors import IntegrityError

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_small(path: Path, most: int) -> bytes:
    """Return the content of a regular file, or of one that a link leads to, of at most ``most`` bytes.

    Whatever else a folder may hold (a FIFO, which would wait for a writer; a device, which need not end; a file larger
    than memory) is refused before anything is read.
    Raises IntegrityError for these, without the path, and OSError for what is not there or may not be read.
    """
    _small_size(os.stat(path), most)
    # Not blocking, and looked at once more: it may have become another thing since.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:
        size = _small_size(os.fstat(descriptor), most)
        content = file.read(size + 1)
    if content is None or len(content) > size:  # some files of the kernel say that they are empty
        raise IntegrityError(f"says that it has {size:,} bytes, but has others, expected a regular file")
    return content


def _small_size(status: os.stat_result, most: int) -> int:
    if not stat.S_ISREG(status.st_mode):
        found = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise IntegrityError(f"is {found}, expected a regular file")
    if status.st_size > most:
        raise IntegrityError(f"has {status.st_size:,} bytes, expected at most {most:,}")
    return status.st_size


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
