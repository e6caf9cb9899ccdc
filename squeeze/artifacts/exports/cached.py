"""Make each export of an artifact once, and keep it in the cache: what an engine reads in the artifact's place.

An export is known by the artifact's content, the format and its options, the code of the exporter and the libraries
that it imports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from squeeze.artifacts import format as artifact
from squeeze.artifacts import keys
from squeeze.artifacts.exports import by_name
from squeeze.core.cache import sealed
from squeeze.core.hashing import digest

FOLDER = "export"  # within what is sealed: writers want a folder that is not there yet

_served: dict[Path, Path] = {}


def exported(source: Path, layout: str, **options: Any) -> Path:
    """Return the export of an artifact, made unless the cache has it.

    source: the artifact's folder. layout: the format, as its file is called, such as ``gguf`` or
    ``compressed-tensors``. options: further arguments of its function, JSON-able.
    Raises SqueezeError for a format that is not there, and whatever exporting raises: Unsupported for an artifact that
    the format cannot hold, IntegrityError for a damaged one.
    """
    write, module = by_name.writer(layout), by_name.module(layout)
    known = {
        "artifact": content_hash(source),
        "format": layout,
        "options": options,
        "code": keys.code_version((module,)),
        "libraries": keys.library_versions((module,)),
    }
    whole = sealed(
        f"exports/{layout.replace('-', '_')}-{digest(known)}", lambda folder: write(source, folder / FOLDER, **options)
    )
    _served[source.resolve()] = whole / FOLDER
    return whole / FOLDER


def served(source: Path) -> Path | None:
    """Return the export of an artifact that this process was given last; None where it was given none."""
    return _served.get(source.resolve())


def content_hash(source: Path) -> str:
    """Return the hash of an artifact's content: what its build has written down, else computed now."""
    try:
        return str(json.loads((source / keys.BUILD_INFO).read_bytes())["content_hash"])
    except (OSError, ValueError, KeyError, TypeError):  # it was saved by hand
        return artifact.content_hash(source)
