"""Compute hashes by which built things are found again. No torch: ``squeeze list`` computes them for every cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from squeeze.artifacts.code_version import closure, libraries
from squeeze.core import plugins
from squeeze.core.cache import cache_root, sealed
from squeeze.core.errors import SqueezeError
from squeeze.core.hashing import digest, sha256
from squeeze.request.cell import Cell
from squeeze.request.steps import find
from squeeze.sources.identity import baseline_hash, calibration_hash

BUILDER = "squeeze.artifacts.format"  # it writes what every technique made
WALK = "squeeze.techniques.calibration"  # it shows calibrated techniques what layers read
NO_BYTE = "squeeze.core."  # messages, files, the cache, this machine: nothing that is built depends on them
LIBRARIES = frozenset({"torch", "transformers", "safetensors"})
BUILD_INFO = "build.json"  # beside an artifact's content: what is known of its making
WITHHELD = "withheld"  # of it: whether what rows are scored on was withheld from the build


def artifact_key(cell: Cell) -> str:
    """Return the sha256 of all that decides what a build writes; steps and calibration have the seeds in their fields.

    Runtime and protocol are not among it: measuring anew never rebuilds. A technique is one, however it is spelt. Of a
    cell with a draft, the key of the draft's artifact is.
    Raises SqueezeError for a step that names no technique.
    """
    targets = [find(step["_target_"]) for step in cell.technique["steps"]]
    pairs = zip(cell.technique["steps"], targets, strict=True)
    steps = [{**step, "_target_": target.found.name} for step, target in pairs]
    machinery = {BUILDER, WALK} if cell.calibration else {BUILDER}
    modules = tuple(sorted({target.found.module for target in targets} | machinery))
    return digest(
        {
            "baseline": baseline_hash(cell.model),
            "dtype": cell.model["dtype"],
            "steps": steps,
            "plugins": plugins.versions(steps),
            "calibration": calibration_hash(cell.calibration),
            "code": code_version(modules),
            "libraries": library_versions(modules),
            **({} if cell.draft is None else {"draft": artifact_key(cell.draft)}),
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
    """Return the sha256 over ``source_files`` of the modules."""
    total = hashlib.sha256()
    for module, file in source_files(modules).items():
        total.update(f"{module}\0".encode() + bytes.fromhex(sha256(file)))
    return total.hexdigest()


@lru_cache
def library_versions(modules: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of torch, transformers, safetensors, and of the libraries that the same files import."""
    used = libraries(source_files(modules), plugins.packages())
    return {name: _version(name) for name in sorted(used | LIBRARIES)}


def source_files(modules: tuple[str, ...]) -> dict[str, Path]:
    """Map the modules, and all that they import of squeeze and of plugins, to their files; ``core`` is left out.

    Raises SqueezeError for a module that does not exist.
    """
    try:
        files = closure(modules, plugins.packages())
    except FileNotFoundError as error:
        raise SqueezeError(f"{error}; install squeeze, or the plugin, again") from error
    return {module: file for module, file in files.items() if not module.startswith(NO_BYTE)}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # The distribution has another name than the package (optimum-quanto: optimum), or is not installed.
        names = sorted(set(metadata.packages_distributions().get(package, [])))
        return " ".join(f"{name} {metadata.version(name)}" for name in names) or "absent"
