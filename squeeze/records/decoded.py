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

RUN = 64  # tokens whose mean counts
FIRSTS = ("ttft_s", "prompt_s")  # steps whose first tokens alone are checked: one a round, or one a length and round
# A token is chosen otherwise where rounding exceeds the lead of the likeliest one, so gaps are as small as rounding.
# SmolLM2-135M, and what 3 bits a weight leave of it, come to 0.002; without one of its 30 layers while decoding to 0.04
# to 0.37 (six were tried). Tiny models: 0.001, and 0.2 or more without a part of one layer.
ROUNDED = 0.01
# A model that compression has ruined doubles small differences from layer to layer: of two bits a weight, a hundred
# times worse than before, SmolLM2-135M comes to 0.03 by rounding alone, and to 0.2 over eight tokens.
# Where activations are quantized, or keys and values are kept in few bits, one call and many give other numbers by
# rights: what rounding turns moves a code, not a last digit. Static int8 comes to 0.16, torch_dynamic, whose scale is
# that of a whole call, to 0.13, KIVI of two bits to 0.05; and where small inputs are set to zero, one that rounding
# moves over the threshold comes or goes: TEAL comes to 0.09 with half of them zero.
COARSE = 0.3


def worst(rounds: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the greatest mean gap of RUN tokens in a row, over the samples of all rounds; None where none was taken.

    Each round has ``gaps``: by step and batch size a list for each row that was checked. Of first tokens there is one
    a round, or one for each length of the curve: those of the rounds stand in a row.
    """
    found: list[list[float]] = []
    for step in rounds[0].get("gaps", {}):
        rows = [row for values in rounds for row in values["gaps"][step]]
        found += [list(chain(*rows))] if step.startswith(FIRSTS) else rows
    return max(map(_worst, found), default=None)


def allowed(coarse: bool, worse: float = 1.0) -> float:
    """Return the mean gap that rounding explains.

    coarse: activations are quantized or thresholded, or the cache is. worse: perplexity over the uncompressed model's.
    """
    return COARSE if coarse else min(COARSE, ROUNDED * max(1.0, worse))


def _worst(gaps: npt.ArrayLike) -> float:
    """Return the greatest mean of RUN neighbours of gaps (n,); of fewer, their sum over RUN."""
    values = np.asarray(gaps, dtype=np.float64)
    return float(np.convolve(values, np.full(RUN, 1 / RUN)).max()) if values.size else 0.0
