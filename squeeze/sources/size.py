"""Tell about how large a model is, before it is loaded or even fetched: what estimates of time go by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from squeeze.core.cache import cache_root
from squeeze.core.errors import SqueezeError
from squeeze.sources import checkpoint, hub
from squeeze.sources import fetch as assets

RANDOM = 150_000  # parameters of a model of two random layers, see ``squeeze.models.tiny``


def parameters(model: Mapping[str, Any]) -> int | None:
    """Return about how many parameters a model has: as counted where its files are here, else as its YAML says.

    Of a GGUF file here they are its bytes, as if all of it had 8 bits. None where nothing is known.
    """
    scheme, rest = assets.split(str(model["source"]))
    if scheme == "random":
        return RANDOM
    said = model.get("parameters")
    try:
        if scheme == "file":
            path = assets.fetch(model)
        elif scheme == "hf":
            path = cache_root() / hub.place(rest, str(model.get("revision") or ""))
        else:
            return said
        return _counted(path) or said
    except (SqueezeError, OSError):  # it is told when the model is asked for; an estimate needs no error
        return said


@lru_cache(maxsize=64)  # thousands of cells may have one model
def _counted(path: Path) -> int | None:
    if path.is_file():
        return path.stat().st_size
    return checkpoint.check(path, tokenizer=False).parameters if path.is_dir() else None
