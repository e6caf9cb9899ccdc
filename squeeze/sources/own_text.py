"""Take in a text of the user's own: a cell names it by its content, and finds it in the cache.

``file:PATH`` in a request becomes ``sha256:HEX`` in the cells. What is measured is so the text as it was when it was
asked for, whatever becomes of the file; another content is another cell; and no record tells where the file lay.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from squeeze.core import cache
from squeeze.core.errors import SqueezeError
from squeeze.core.given import read_given

FILE = "file:"
KEPT = re.compile(r"sha256:([0-9a-f]{64})")
LARGEST = 64 * 2**20  # bytes: 15 million tokens, which a tokenizer takes minutes for
UNLIKE_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+|^[^A-Za-z0-9]+")


def taken_in(corpus: str) -> str:
    """Return the name that a cell has for a corpus: of ``file:PATH``, whose text is kept from now on, ``sha256:HEX``.

    Any other name is its own. Raises SqueezeError for what is no regular file, too large, no UTF-8 text, or empty.
    """
    if not corpus.startswith(FILE):
        return corpus
    path = Path(corpus.removeprefix(FILE)).expanduser().absolute()
    content = read_given(path, LARGEST)
    try:
        if not content.decode().strip():
            raise SqueezeError(f"{path}: empty, expected a text")
    except UnicodeDecodeError as error:
        raise SqueezeError(f"{path}: no UTF-8 text (byte {error.start:,}); save it in UTF-8") from error
    name = f"sha256:{hashlib.sha256(content).hexdigest()}"

    def write(folder: Path) -> None:
        (folder / "text.txt").write_bytes(content)

    cache.sealed(place(name), write)
    return name


def hash_of(corpus: str) -> str | None:
    """Return the sha256 of a text that was taken in, from its name; None for the name of any other corpus."""
    match = KEPT.fullmatch(corpus)
    return match[1] if match else None


def place(name: str) -> str:
    """Return where below the cache root a text that was taken in is kept."""
    return f"corpora/{name}-{hash_of(name) or '':.16}"


def title(corpus: str) -> str:
    """Return what people call a corpus, as labels may have it: of ``file:texts/my notes.txt``, ``my_notes``."""
    if (own := hash_of(corpus)) is not None:
        return f"sha256-{own[:8]}"
    if not corpus.startswith(FILE):
        return corpus
    return UNLIKE_A_NAME.sub("_", Path(corpus.removeprefix(FILE)).stem).strip("_") or "text"
