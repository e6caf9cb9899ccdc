"""Keep in a few hundred characters which items a classifier answered right: what ranking needs of its record.

The text is ``872:f3...``: how many items, and a bit for each in hex, the first one highest, zeros behind the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.records.record import MOST_ITEMS

ANSWERS, BASELINE = "_correct", "baseline_"  # how names of such arrays end, and how those of its baseline begin


def kept(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return what a record keeps of its samples' TASK_correct, (items,), tasks in the order of their names.

    That is nothing for more than MOST_ITEMS items.
    """
    own = sorted(name for name in arrays if name.endswith(ANSWERS) and not name.startswith(BASELINE))
    found = [arrays[name] for name in own]
    if not 0 < sum(map(len, found)) <= MOST_ITEMS:
        return ""
    return packed(np.concatenate(found))


def packed(right: npt.ArrayLike) -> str:
    """Return the text of answers (items,), true where one was right."""
    bits = np.asarray(right, dtype=bool)
    return f"{bits.size}:{np.packbits(bits).tobytes().hex()}"


def unpacked(text: str) -> npt.NDArray[np.bool_]:
    """Return the answers (items,) that ``packed`` made a text of."""
    count, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=int(count)).astype(bool)
