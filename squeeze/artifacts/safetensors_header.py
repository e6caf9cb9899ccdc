"""Read and write the header of a safetensors file: 8 bytes of little-endian length, JSON of that length, the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LENGTH = 8  # bytes
METADATA = "__metadata__"


def read(path: Path) -> tuple[dict[str, Any], int]:
    """Return the entries of a file's header, and the byte at which the data begin.

    Raises OSError for a file that cannot be read, ValueError for one that does not begin with such a header.
    """
    if not path.is_file():  # a FIFO would wait for a writer
        raise OSError(f"{path.name} is no regular file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        entries = json.loads(file.read(min(length, path.stat().st_size)))
    if not isinstance(entries, dict):
        raise ValueError(f"its header is {type(entries).__name__}, expected an object")  # noqa: TRY004 - content of a file
    return entries, LENGTH + length


def encode(entries: Mapping[str, Any], begin: int | None = None) -> bytes:
    """Return the bytes before the data, which begin at a multiple of 8, or at ``begin`` where that is given."""
    content = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    length = -(-len(content) // LENGTH) * LENGTH if begin is None else begin - LENGTH
    return length.to_bytes(LENGTH, "little") + content.ljust(length)


def sort_metadata(path: Path) -> None:
    """Put a file's metadata in order: safetensors writes them in one that changes by the process."""
    entries, begin = read(path)
    entries[METADATA] = dict(sorted(entries[METADATA].items()))
    with path.open("r+b") as file:
        file.write(encode(entries, begin))
