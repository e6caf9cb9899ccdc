"""Read a ``requests.jsonl.gz``: the questions of a task, a request for each of their choices, sorted by question."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from squeeze.sources.tasks import NORMALISATION


def requests(path: Path, items: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the requests of the first ``items`` questions (None: of all), in the order of their ids."""
    end = NORMALISATION if items is None else items
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from takewhile(lambda request: request["doc_id"] < end, map(json.loads, lines))


def asked(path: Path, items: int | None = None) -> Iterator[str]:
    """Yield each of these questions as often as it has choices, each with one of them behind it."""
    return (request["request"]["context"] + request["request"]["continuation"] for request in requests(path, items))
