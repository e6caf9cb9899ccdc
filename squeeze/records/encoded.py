"""Judge whether the classes that were timed are the scored model's: by how far the logits of both are apart.

What is judged is what ``squeeze.probes.encoded`` found: over all rounds, the distance of timed logits from scored ones
as a share of the scored ones' size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ROUNDED = 0.05  # of bfloat16, and of two bits a weight
COARSE = 0.30  # where activations are quantized over a whole call, one text and many give other numbers by rights


def gap(rounds: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the greatest share of any batch size, over the samples of all rounds; None where none was taken.

    Each round has ``encode_apart``: batch size -> the two sums of squares, of the distance and of the size. What has no
    size is as far apart as can be where it differs at all.
    """
    found = []
    for batch in rounds[0].get("encode_apart", {}):
        distance, size = (math.fsum(values["encode_apart"][batch][part] for values in rounds) for part in (0, 1))
        found.append(math.sqrt(distance / size) if size else float(distance > 0))
    return max(found, default=None)


def allowed(coarse: bool) -> float:
    """Return the share that rounding explains. coarse: answers hang on what else is in a call."""
    return COARSE if coarse else ROUNDED
