"""Tell a full disk by whatever exception it shows itself, and say it in one line. Standard library only."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# Libraries lose the number: Rust's give it in words, NumPy says how much was written, zip writers wrap it.
WORDS = re.compile(
    r"no space left on device|disk quota exceeded|disk full|\(os error (?:27|28|122)\)|\d+ requested and \d+ written",
    re.IGNORECASE,
)


def is_full_disk(error: BaseException) -> bool:
    """Tell whether a full disk, or a quota that is used up, is behind an exception or what it was raised from."""
    return any(
        (isinstance(each, OSError) and each.errno in FULL_DISK) or WORDS.search(str(each)) for each in _chain(error)
    )


def free_megabytes(path: Path) -> float:
    """Return the free space of the disk on which a path lies, or would lie, in MB."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free / 1e6


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
