"""Find what an artifact really is: on disk, in memory, and while it runs. Nothing here believes a technique."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from squeeze.artifacts import format as artifact
from squeeze.layers.contract import count_parameters
from squeeze.probes import decoding, kept, products, realised, size
from squeeze.probes.recount import recount
from squeeze.probes.visual import visual
from squeeze.probes.zeroed import zeroed
from squeeze.runtimes.contract import TorchEngine


@dataclass(frozen=True)
class Inspection:
    """Hold what was found. figures: sample names and values; mismatches: what is not as it was claimed, in words."""

    figures: dict[str, Any]
    mismatches: list[str]


def inspect(folder: Path, baseline: Path, engine: TorchEngine, protocol: Mapping[str, Any], text: Tensor) -> Inspection:
    """Return what the artifact in ``folder`` is, against the uncompressed model, an artifact in ``baseline``.

    engine: that artifact, loaded; protocol: its `latency` part; text: (1, tokens) int64, on which it is watched.
    """
    weighed, dense = size.figures(folder, baseline), artifact.skeleton(baseline)
    found = realised.figures(engine, weighed, dense, protocol, text)
    running = found.pop("mismatches")
    stored = artifact.load(folder, prepare=False)
    counted = recount(folder, stored, dense)
    model = engine.subject.model
    shares = kept.shares(stored.model, dense)
    zeros, pictures = zeroed(model, text), visual(engine, dense, protocol, text)
    if engine.scored_as == "itself":  # a compiled step, which is timed elsewhere, reads all columns
        found["bytes_per_token"] -= zeros.unread
    found["bytes_per_token"] -= pictures.unread
    rows = decoding.inputs(model, realised.low_bit_layers(model), text)
    return Inspection(
        {**weighed, **found, **counted.figures(), **shares, **zeros.figures(), **pictures.figures()},
        [
            *size.mismatches(folder, baseline, count_parameters(stored.model)),
            *counted.mismatches(stored.claims),
            *kept.mismatches(shares, stored.claims),
            *kept.unshared(stored.model, stored.claims),
            *zeros.mismatches(stored.claims),
            *pictures.mismatches(stored.claims),
            *products.mismatches(stored.model, model, rows),
            *running,
        ],
    )
