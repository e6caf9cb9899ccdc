"""Name the sets of labelled texts that classifiers are scored on, and read them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from squeeze.core.hashing import digest
from squeeze.sources import sentiment

Labelled = tuple[list[str], list[int]]

# What a protocol may name among its tasks -> what reads the texts and the number of each one's class.
SETS: dict[str, Callable[[], Labelled]] = {"sst2": lambda: sentiment.sentences("validation")}


def items(name: str, most: int | None = None) -> Labelled:
    """Return the first ``most`` texts of a set (None: all) and their classes, both (items,).

    Raises SqueezeError and IntegrityError as fetching does.
    """
    texts, labels = SETS[name]()
    return texts[:most], labels[:most]


def content_hash(name: str) -> str:
    """Hash (sha256) the texts and classes of a set, as they lie here now. Raises as ``items`` does."""
    return digest(list(items(name)))
