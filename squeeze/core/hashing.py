"""Hash values and files, and give a value its canonical text. Standard library only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no white space, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Hash (sha256, 64 hex digits) a JSON-able value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash (sha256, hex) a file's bytes, read in pieces: a file may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Hash (sha256, hex) names and bytes of the files right in a folder."""
    files = sorted(item for item in folder.iterdir() if item.is_file())
    return digest([[file.name, sha256(file)] for file in files])
