"""Tell about how large a model is, before it is loaded or even fetched: what estimates of time go by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from squeeze.core.cache import cache_root
from squeeze.core.errors import SqueezeError
from squeeze.sources import checkpoint, hub
from squeeze.sources import fetch as assets

RANDOM = 1e5  # parameters of a model of two random layers, see ``squeeze.models.tiny``
SIZE = re.compile(r"(\d+(?:\.\d+)?)(m|b)(?![a-z0-9])", re.IGNORECASE)  # in a name: 135m, 1.5B
UNIT = {"m": 1e6, "b": 1e9}


def parameters(model: Mapping[str, Any]) -> float | None:
    """Return about how many parameters a model has: counted where its files are here, else as its name or source says.

    Of a GGUF file here they are its bytes, as if all of it had 8 bits. None where nothing tells.
    """
    scheme, _, rest = str(model.get("source", "")).partition(":")
    if scheme == "random":
        return RANDOM
    with suppress(SqueezeError, OSError):  # told when the model is asked for: an estimate needs no error
        if counted := _counted(_here(scheme, rest, model)):
            return counted
    found = SIZE.search(str(model.get("name", ""))) or SIZE.search(rest)
    return float(found[1]) * UNIT[found[2].lower()] if found else None


def _here(scheme: str, rest: str, model: Mapping[str, Any]) -> Path | None:
    """Return where a model's files are, if they are here as they are read; nothing is fetched."""
    match scheme:
        case "hf":
            return cache_root() / hub.place(rest, str(model.get("revision") or ""))
        case "packaged":
            return assets.PACKAGED / rest
        case "file":
            return Path(rest).expanduser()
        case _:
            return None


@lru_cache(maxsize=64)  # thousands of cells may have one model
def _counted(path: Path | None) -> float | None:
    if path is None or not path.exists():
        return None
    return path.stat().st_size if path.is_file() else checkpoint.check(path, tokenizer=False).parameters
