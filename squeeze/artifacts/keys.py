"""Hashes by which built things are found again. No torch: ``squeeze list`` computes them for every cell."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from squeeze.artifacts.code_version import closure, libraries
from squeeze.core import cache
from squeeze.core.errors import SqueezeError
from squeeze.core.files import sha256
from squeeze.request.cell import Cell, digest
from squeeze.sources import fetch as assets
from squeeze.sources.corpora import corpus_hash

# Raise when squeeze.models.load, gguf_source or tiny come to give other weights from the same source.
LOADING = 1
# Raise when squeeze.sources.corpora comes to draw other calibration windows from the same corpus.
SAMPLING = 1

PINS = ("source", "member", "sha256", "wheel_sha256", "revision", "seed", "kind")
BUILDER = "squeeze.artifacts.format"  # it writes what every technique made
LIBRARIES = frozenset({"torch", "transformers", "safetensors"})
BOOKKEEPING = frozenset({"filelock", "platformdirs", "rich"})  # no figure and no byte depends on them


def baseline_hash(model: Mapping[str, Any]) -> str:
    """sha256 of where a model's weights come from: its pins, or the content of a local source. Not of its dtype.

    Raises SqueezeError for a local source that is not there.
    """
    pins = {key: model[key] for key in PINS if model.get(key) is not None}
    if str(model["source"]).startswith("file:"):
        pins["source"] = _content_hash(assets.fetch(model))
    return digest({"loading": LOADING, **pins})


def calibration_hash(calibration: Mapping[str, Any]) -> str:
    """sha256 of the calibration tokens' origin: the corpus by its content, samples, window and seed."""
    if not calibration:
        return digest({})
    settings = {key: value for key, value in calibration.items() if key not in {"name", "corpus"}}
    return digest({"sampling": SAMPLING, "corpus": corpus_hash(calibration["corpus"]), **settings})


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


def _content_hash(path: Path) -> str:
    """sha256 over names and bytes of a local file or folder; kept, so that it is hashed once for each state."""
    files = [path] if path.is_file() else sorted(item for item in path.iterdir() if item.is_file())
    state = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]

    def write(folder: Path) -> None:
        (folder / "sha256").write_text(digest([[file.name, sha256(file)] for file in files]))

    return (cache.sealed(f"digests/{digest(state)[:16]}", write) / "sha256").read_text()
