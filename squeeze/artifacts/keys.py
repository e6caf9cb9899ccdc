"""Hashes by which built things are found again. No torch: ``squeeze list`` computes them for every cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from squeeze.artifacts.code_version import closure, libraries
from squeeze.core.cache import cache_root, sealed
from squeeze.core.errors import SqueezeError
from squeeze.core.hashing import digest, sha256
from squeeze.request.cell import Cell
from squeeze.sources.identity import baseline_hash, calibration_hash

BUILDER = "squeeze.artifacts.format"  # it writes what every technique made
LIBRARIES = frozenset({"torch", "transformers", "safetensors"})
BUILD_INFO = "build.json"  # beside an artifact's content: what is known of its making
BOOKKEEPING = frozenset({"filelock", "platformdirs", "rich"})  # no figure and no byte depends on them


def artifact_key(cell: Cell) -> str:
    """sha256 of all that decides what a build writes; the seeds are fields of the steps and of the calibration.

    Runtime and protocol are not among it: measuring anew never rebuilds.
    Raises SqueezeError for a step whose module does not exist.
    """
    steps = cell.technique["steps"]
    modules = tuple(sorted({step["_target_"].rpartition(".")[0] for step in steps} | {BUILDER}))
    return digest(
        {
            "baseline": baseline_hash(cell.model),
            "dtype": cell.model["dtype"],
            "steps": steps,
            "calibration": calibration_hash(cell.calibration),
            "code": code_version(modules),
            "libraries": library_versions(modules),
        }
    )


def folder(key: str) -> Path:
    """Return where the cache keeps the artifact of this key, whether it is there or not."""
    return cache_root() / "artifacts" / key / "artifact"


def made(key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of the artifact of this key, made by ``make(folder)`` unless the cache has it intact."""
    sealed(f"artifacts/{key}", lambda whole: make(whole / "artifact"))
    return folder(key)


@lru_cache
def code_version(modules: tuple[str, ...]) -> str:
    """sha256 over the source files of the modules and of all modules of squeeze that they import."""
    total = hashlib.sha256()
    for module, file in _files(modules).items():
        total.update(f"{module}\0".encode() + bytes.fromhex(sha256(file)))
    return total.hexdigest()


@lru_cache
def library_versions(modules: tuple[str, ...]) -> dict[str, str]:
    """Versions of torch, transformers, safetensors, and of the libraries that the same files import."""
    return {name: _version(name) for name in sorted((libraries(_files(modules)) | LIBRARIES) - BOOKKEEPING)}


def _files(modules: tuple[str, ...]) -> dict[str, Path]:
    try:
        return closure(modules)
    except FileNotFoundError as error:
        raise SqueezeError(f"technique step: {error}; a step lives in squeeze/techniques/") from error


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # The distribution has another name than the package (optimum-quanto: optimum), or is not installed.
        names = sorted(set(metadata.packages_distributions().get(package, [])))
        return " ".join(f"{name} {metadata.version(name)}" for name in names) or "absent"
