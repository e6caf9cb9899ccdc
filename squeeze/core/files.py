"""Write files that are either wholly there or not there at all."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
