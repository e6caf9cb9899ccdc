"""Fetch members of pinned wheels as files: nothing is installed, imported or run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError, TransientError, hint
from squeeze.core.files import total_bytes
from squeeze.core.hashing import digest, sha256
from squeeze.core.progress import Advance, progress

REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")

# One platform for everyone, so that every machine fetches the very same file.
DOWNLOAD = (
    *("download", "--no-deps", "--only-binary=:all:", "--platform", "manylinux_2_28_x86_64"),
    *("--python-version", "3.11", "--retries", "2", "--no-input", "--disable-pip-version-check", "--no-cache-dir"),
)

# What pip prints when it cannot reach its index, or cannot write.
UNREACHABLE = ("Retrying (", "NewConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "resolve host")
NO_SPACE = "No space left on device"

# What is told of it then; another time it may be mended.
NO_ROOM = "disk full while downloading"
NO_NETWORK = "no network"


def member(requirement: str, wheel_sha256: str, name: str, member_sha256: str | None) -> Path:
    """Return the file or folder ``name`` out of the wheel ``NAME==VERSION``, verified, in the cache.

    Raises SqueezeError for a requirement without an exact version, no network, a member that is not there or not
    safe; IntegrityError, with both hashes, where the wheel or the member is not the pinned one.
    """
    check_safe(name)
    path = PurePosixPath(name)

    def extract(folder: Path) -> None:
        _extract(wheel(requirement, wheel_sha256), path, folder)
        if member_sha256 is not None:
            check_pinned(folder / path.name, member_sha256)

    pinned = digest([requirement, wheel_sha256, name, member_sha256])
    return cache.sealed(f"members/{path.name}-{pinned[:16]}", extract) / path.name


def wheel(requirement: str, expected_sha256: str) -> Path:
    """Return the wheel file itself, in the cache; pip downloads it once."""
    if not REQUIREMENT.fullmatch(requirement):
        raise SqueezeError(f"pypi:{requirement}: expected NAME==VERSION, such as pypi:gensim==4.4.0")

    def download(folder: Path) -> None:
        with progress(f"fetching {requirement}") as advance:
            _download(requirement, folder, advance)
        check_pinned(only_file(folder), expected_sha256)

    return only_file(cache.sealed(f"wheels/{requirement}-{expected_sha256[:16]}", download))


def _download(requirement: str, folder: Path, advance: Advance) -> None:
    command = [sys.executable, "-m", "pip", *DOWNLOAD, "--dest", str(folder), requirement]
    with tempfile.TemporaryDirectory(dir=folder) as scratch, tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, "TMPDIR": scratch}  # the parts on the disk where the whole will be
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as pip:
            try:
                while not _ended(pip):
                    with contextlib.suppress(FileNotFoundError):  # pip moves files while we look
                        advance(total_bytes(Path(scratch).rglob("*.whl")))
            except BaseException:
                pip.kill()
                raise
        output.seek(0)
        if pip.returncode:
            why = cause(output.read().splitlines())
            passing = why.startswith((NO_ROOM, NO_NETWORK))
            raise (TransientError if passing else SqueezeError)(f"pypi:{requirement}: {why}")


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


def cause(lines: list[str]) -> str:
    """Tell what the user must know of a failed download, from the lines that pip printed."""
    text = "\n".join(lines)
    if NO_SPACE in text:
        return f"{NO_ROOM}; free some space, or set TMPDIR and SQUEEZE_CACHE to a larger disk"
    if any(sign in text for sign in UNREACHABLE):
        return f"{NO_NETWORK}: the package index cannot be reached; connect once, afterwards the cache serves it"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return f"pip download failed: {errors[-1] if errors else ' '.join(lines[-1:]) or 'without a message'}"


def _extract(archive: Path, path: PurePosixPath, folder: Path) -> None:
    """Copy one file, or all files of one folder, out of a wheel into ``folder``; names keep their ending."""
    with zipfile.ZipFile(archive) as wheel_file:
        files = [item.filename for item in wheel_file.infolist() if not item.is_dir()]
        wanted = [name for name in files if PurePosixPath(name).is_relative_to(path)]
        if not wanted:
            raise SqueezeError(f"{archive.name} has no member {str(path)!r}; {hint(str(path), files)}")
        for name in wanted:
            check_safe(name)
            target = folder / PurePosixPath(name).relative_to(path.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            with wheel_file.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, length=1 << 20)


def check_safe(name: str) -> None:
    """Raise SqueezeError for a member name that would lead out of its package or folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.name:
        raise SqueezeError(f"member {name!r} points outside its package; give a path inside it, without '..'")


def check_pinned(path: Path, expected: str) -> None:
    """Raise IntegrityError, with both hashes, for a file that has another sha256 than the one expected."""
    if (found := sha256(path)) != expected:
        raise IntegrityError(f"{path.name} has sha256 {found}, expected {expected}; it is not the pinned file")


def only_file(folder: Path) -> Path:
    """Return the one file that a folder of the cache holds beside its manifest."""
    return next(path for path in folder.iterdir() if not path.name.startswith("."))
