"""Make folders once and keep them: whole or absent, whatever runs at the same time or dies in between.

Below the cache root lie, by what they hold:

    FETCHED    what came from elsewhere, and what follows from it alone: models, texts, questions, their hashes, the
               environments of engines
    COMPUTED   what this code computed: artifacts, their exports, quality, statistics of calibration, models that it
               fine-tuned, trainings to go on with
    AGREED     what the runs on a machine agree on: who holds a device, which baseline is the faster one
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from squeeze.core.disk import FULL_DISK, free_megabytes
from squeeze.core.errors import SqueezeError, TransientError
from squeeze.core.hashing import sha256
from squeeze.core.scratch import Scratch

FETCHED = frozenset({"converted", "corpora", "digests", "environments", "hub", "members", "ngrams", "wheels"})
COMPUTED = frozenset({"artifacts", "calibration", "exports", "quality", "trained", "training"})
AGREED = frozenset({"locks", "speed_baseline"})
VARIABLE = "SQUEEZE_CACHE"  # names the root, also to the processes that a run starts
MANIFEST = ".manifest.json"
REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


_root: ContextVar[Path | None] = ContextVar("cache root", default=None)


def cache_root() -> Path:
    """Return where the cache lies: the root that is in use, else ``SQUEEZE_CACHE``, else the user's cache folder."""
    if (root := _root.get()) is not None:
        return root
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("squeeze")


@contextmanager
def using(root: Path) -> Iterator[None]:
    """Let the body, and the processes that a run starts in it, have their cache at ``root``."""
    token = _root.set(root.absolute())
    try:
        yield
    finally:
        _root.reset(token)


@contextmanager
def nothing_computed() -> Iterator[None]:
    """Let the body have a cache with all that was fetched or agreed on, and nothing that was computed."""
    usual = cache_root()
    usual.mkdir(parents=True, exist_ok=True)
    fresh = Scratch.make("rerun-", usual)
    try:
        for name in FETCHED | AGREED:
            (usual / name).mkdir(exist_ok=True)
            (fresh.path / name).symlink_to(usual / name, target_is_directory=True)
        with using(fresh.path):
            yield
    finally:
        fresh.remove()


def sealed(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` below the cache root, made by ``make(empty_folder)`` unless it is there and intact.

    Of two processes that ask at once, one makes it and the other waits. A folder in which a file was damaged or
    lost is made anew. What ``make`` raises leaves nothing behind; a full disk comes as TransientError, a folder
    that cannot be written to as SqueezeError.
    """
    folder = cache_root() / name
    if is_intact(folder):
        return folder
    with _explained(folder), _locked(folder):
        if not is_intact(folder):
            _make(folder, make)
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    if folder.exists():
        print(f"{folder.name} in the cache is damaged; making it again", file=sys.stderr, flush=True)
    # We hold the lock: a part that is already there was left by a process that died.
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        make(part)
        _seal(part)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Write down every file's size, time of change and sha256; from then on damage shows."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {path.relative_to(folder).as_posix(): {**_stamp(path), "sha256": sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def is_intact(folder: Path) -> bool:
    """Tell whether a folder that ``sealed`` has made is there, with no file of it damaged or lost."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all(_is_unchanged(folder / name, entry) for name, entry in manifest.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _is_unchanged(path: Path, entry: dict[str, object]) -> bool:
    # Hashing half a gigabyte costs a second: it is done only where the stamp differs (a cache that was copied).
    stamp = _stamp(path)
    if stamp["bytes"] != entry["bytes"]:
        return False
    return stamp["modified_ns"] == entry["modified_ns"] or sha256(path) == entry["sha256"]


def _stamp(path: Path) -> dict[str, object]:
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting for another process that makes {folder.name} ...", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK and Path(error.filename or folder).is_relative_to(cache_root()):
            raise TransientError(
                f"disk full: {folder} could not be written ({free_megabytes(folder):.0f} MB free);"
                " free some space, or set SQUEEZE_CACHE to a folder on a larger disk"
            ) from error
        if error.errno in REFUSED and Path(error.filename or folder).is_relative_to(cache_root()):
            raise SqueezeError(
                f"cache folder {cache_root()} is not writable; set SQUEEZE_CACHE to one that is"
            ) from error
        raise
