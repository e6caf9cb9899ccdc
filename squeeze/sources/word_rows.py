"""Hash what stands in a row in a text, eight words at a time, for texts to be compared by it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

WORDS = 8  # in a row
WORD = re.compile(r"[^\W_]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: a polynomial in it, modulo 2^64, hashes a sequence of hashed words

Hashes = npt.NDArray[np.uint64]


def sequences(pieces: Iterable[str]) -> Hashes:
    """Return the hashes, sorted and each once, of all that stands in a row of 8 words within a piece of text."""
    known: dict[str, int] = {}
    found = [_rows(_words(piece, known)) for piece in pieces]
    distinct: Hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))
    return distinct


def _words(piece: str, known: dict[str, int]) -> Hashes:
    words = WORD.findall(piece.casefold())
    for word in words:
        if word not in known:
            known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.array([known[word] for word in words], dtype=np.uint64)


def _rows(words: Hashes) -> Hashes:
    total: Hashes = np.zeros(max(len(words) - WORDS + 1, 0), np.uint64)
    for place in range(WORDS if len(total) else 0):
        total = total * FACTOR + words[place : place + len(total)]
    return total
