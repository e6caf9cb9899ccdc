"""Notice what fails around a run: a disk that is full, a cache, scratch or artifact that is removed under its hands.

None of that says anything of a cell. It comes as TransientError, in one line that says what happened and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from squeeze.core.cache import AGREED, COMPUTED, FETCHED, VARIABLE, cache_root
from squeeze.core.disk import free_megabytes, is_full_disk
from squeeze.core.errors import TransientError
from squeeze.runner.jobs.job import Job

GOES_ON = "then `squeeze resume` measures what is missing"

Identity = tuple[int, int]  # device and inode: a folder that was removed and made again is another one


@dataclass(frozen=True)
class Surroundings:
    """Remember what jobs stand on as they begin: the cache, the folders they write to, the artifacts they read."""

    folders: Mapping[Path, Identity]
    files: Sequence[Path]

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Surroundings:
        """Return what is there now."""
        root = cache_root()
        given = {place for job in jobs for place in (job.artifact, job.baseline, job.baseline_artifact) if place}
        inside = [path for place in sorted(given) for path in place.rglob("*")]
        places = [root, *(root / name for name in sorted(FETCHED | COMPUTED | AGREED))]
        places += [*(job.out for job in jobs), *given, *inside]
        return cls({place: _identity(place) for place in places if place.is_dir()}, [p for p in inside if p.is_file()])

    def check(self) -> None:
        """Raise TransientError, naming the first, when any of it is gone."""
        for folder, identity in self.folders.items():
            if not folder.is_dir() or _identity(folder) != identity:
                raise removed(folder)
        for file in self.files:
            if not file.exists():
                raise removed(file)


@contextmanager
def explained(*folders: Path) -> Iterator[None]:
    """Raise what the system says of a full disk, or of something gone from the cache, scratch or ``folders``, in words.

    Raises TransientError for these; every other error passes.
    """
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise full(Path(error.filename) if error.filename else None) from error
        places = (cache_root(), Path(gettempdir()), *folders)
        if error.errno in (errno.ENOENT, errno.ESTALE) and _is_below(error.filename, places):
            raise removed(Path(error.filename)) from error
        raise


def full(place: Path | None = None) -> TransientError:
    """Return the error to raise for a full disk. place: what could not be written, where that is known."""
    free = "; ".join(
        f"{free_megabytes(folder):.0f} MB free for {folder}" for folder in (cache_root(), Path(gettempdir()))
    )
    what = f"{place} could not be written" if place else "a process could not write what it made"
    return TransientError(
        f"disk full: {what} ({free}); free some space, or set {VARIABLE} or TMPDIR to a larger disk, {GOES_ON}"
    )


def removed(place: Path) -> TransientError:
    """Return the error to raise for a file or folder that was there and is gone."""
    return TransientError(
        f"{place} was removed while a run was at work on it; see who clears that folder, {GOES_ON} and makes it again"
    )


def _identity(folder: Path) -> Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_below(name: object, folders: Sequence[Path]) -> bool:
    return isinstance(name, str) and any(Path(name).is_relative_to(folder) for folder in folders)
