"""Judge whether the tokens that were decoded, and timed, are those that the scored model chooses.

What is judged are the gaps that ``squeeze.probes.teacher_forced`` found: of each token, how many standard deviations of
the logits it lies below the likeliest one. The mean over a few tokens in a row counts, the worst in any round: one
token may be a near tie, and text that goes round in circles agrees with every model in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

RUN = 8  # tokens whose mean counts
FIRSTS = "ttft_s"
# A token is chosen otherwise where rounding exceeds the lead of the likeliest one, so gaps are as small as rounding.
# Tiny models, compressed in every way, come to 0.005 at most (tests/probes/test_teacher_forced.py), and to 1.7 or more
# where one part of one layer is left out. SmolLM2-135M's rows come to 0.010, and to 0.21 where two bits a weight have
# left little of the model.
ROUNDED = 0.5
# Where activations are quantized over a whole call, or keys and values are kept in few bits, one call and many give
# other numbers by rights: tiny models come to 0.18. Of the rows published, torch_dynamic's scores are furthest off:
# 38 % of its tokens differ from the uncompressed model's, at a divergence of 0.54 nats.
COARSE = 1.0


def worst(rounds: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the greatest mean gap of RUN tokens in a row, over the samples of all rounds; None where none was taken.

    Each round has ``gaps``: by step and batch size a list for each row that was checked. Of first tokens there is one
    a round: those of the rounds stand in a row.
    """
    found: list[list[float]] = []
    for step in rounds[0].get("gaps", {}):
        rows = [row for values in rounds for row in values["gaps"][step]]
        found += [list(chain(*rows))] if step.startswith(FIRSTS) else rows
    return max(map(_worst, found), default=None)


def allowed(coarse: bool) -> float:
    """Return the mean gap that rounding explains. coarse: scores depend on what else is in a call, or on the cache."""
    return COARSE if coarse else ROUNDED


def _worst(gaps: npt.ArrayLike) -> float:
    """Return the greatest mean of RUN neighbours of gaps (n,); of fewer, their sum over RUN."""
    values = np.asarray(gaps, dtype=np.float64)
    return float(np.convolve(values, np.full(RUN, 1 / RUN)).max()) if values.size else 0.0
