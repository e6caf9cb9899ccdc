"""Write an export where nothing is lost: into a new or empty folder, whole or not at all. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from squeeze.core.errors import SqueezeError


def check_vacant(folder: Path) -> None:
    """Raise SqueezeError unless nothing is lost when a folder of this name is written."""
    if folder.is_symlink() and not folder.exists():
        raise SqueezeError(f"{folder} is a link to nothing, expected a new or empty folder; name another")
    if folder.exists() and (there := next(folder.iterdir(), None)) is not None:
        raise SqueezeError(f"{folder} holds {there.name}, expected a new or empty folder; name another, or empty it")


@contextmanager
def becoming(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``folder`` when the body ends well; otherwise nothing of it stays."""
    check_vacant(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
        part = Path(scratch) / folder.name
        part.mkdir()  # with the permissions that the user gives to new folders
        yield part
        os.replace(part, folder)
