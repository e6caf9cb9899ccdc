"""Keep scratch folders that no process leaves behind for good, however it ends.

In each lies a file that its owner has locked (flock) for as long as it lives: the kernel drops the lock at whatever
end. Whoever makes a folder removes first those beside it whose lock is free. Another user's, another host's (its locks
may not be seen from here), and folders without such a file are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir, mkdtemp

LOCK = ".owner.lock"


@dataclass(frozen=True)
class Scratch:
    """Own a new, empty folder until `remove`, or until this process ends."""

    path: Path
    lock: int

    @classmethod
    def make(cls, prefix: str, parent: Path | None = None) -> Scratch:
        """Return a new folder in ``parent`` (None: the temporary folder); those of dead owners there are removed.

        Raises OSError where none can be made.
        """
        place = parent or Path(gettempdir())
        remove_dead(prefix, place)
        path = Path(mkdtemp(prefix=prefix, dir=place))
        # Locked before it has the name by which it is looked for: a new folder never looks like a dead one's.
        unnamed = path / f"{LOCK}.new"
        lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(lock, socket.gethostname().encode())
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take this folder for a dead one's
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path / LOCK)
        return cls(path, lock)

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # removed before
            os.close(self.lock)


def remove_dead(prefix: str, place: Path) -> None:
    """Remove the folders of this prefix whose owner, a process of this user on this host, has ended."""
    for folder in place.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it vanishes meanwhile, or is not ours to look into
            _remove_if_dead(folder)


def _remove_if_dead(folder: Path) -> None:
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if os.read(lock, 256) == socket.gethostname().encode():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
