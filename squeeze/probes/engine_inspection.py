"""Find what a row of an engine is that torch cannot look into: on disk and in memory, from the outside.

The artifact is audited as any other: its files are weighed. What the engine reads in its place, its export, is what a
user of the engine has to ship, and gives the row its size. What its layers are, how wide their codes lie in memory and
what they multiply is not seen; the record says so in a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports import cached
from squeeze.core.files import total_bytes
from squeeze.probes import memory, realised, size
from squeeze.runtimes.contract import Engine

INSPECTED = "files and memory alone: torch cannot look into the engine"


def figures(folder: Path, baseline: Path, engine: Engine, kept_bytes: int) -> dict[str, Any]:
    """Return the figures of an engine that has loaded the artifact in ``folder``.

    baseline: the uncompressed model's artifact. kept_bytes: memory of its own that the process kept of loading
    (``memory.kept``), imports included.
    Names are those of ``realised.figures``, but for what nobody sees; inspected says that in words. bytes and what
    follows from them are of the export, where the engine reads one; live_bytes are the engine's own word. memory_real:
    both are small, that word and what the process kept, the room for imports left out.
    """
    weighed = of_what_is_read(folder, size.figures(folder, baseline))
    dense = artifact.skeleton(folder)
    small = realised.SMALL * weighed["parameters"] * _item(artifact.describe(folder)["dtype"])
    held = engine.bytes_held
    return {
        **weighed,
        "bytes_real": weighed["bytes"] < small,
        "memory_real": held < small and kept_bytes < small + memory.HELD_ONCE,
        "live_bytes": held,
        "positions": realised.positions(dense),
        "inspected": INSPECTED,
        "mismatches": [],
    }


def of_what_is_read(folder: Path, weighed: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of the export that the engine was given of an artifact; the artifact's own where of none.

    weighed: ``size.figures`` of the artifact. Files that hold a tokenizer or JSON alone count among all files only.
    """
    if (export := cached.served(folder)) is None:
        return weighed
    files = [path for path in sorted(export.rglob("*")) if path.is_file()]
    weights = total_bytes(path for path in files if path.suffix != ".json" and not size.TOKENIZER.search(path.name))
    parameters = weighed["parameters"]
    return {
        "bytes": weights,
        "bytes_on_disk": total_bytes(files),
        "parameters": parameters,
        "effective_bits": 8 * weights / parameters,
        "compression_ratio": 4 * parameters / weights,
    }


def _item(dtype: str) -> int:
    found: torch.dtype = getattr(torch, dtype)
    return found.itemsize
