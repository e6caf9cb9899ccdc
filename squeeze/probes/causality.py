"""Find out whether a model saw the future: whether the scores that it got hang on tokens that come later.

Windows of the text are read once more with other tokens from some place on. Up to there, each token must be as likely
as it was when it was scored. A model that is shown what it is to predict knows it no more.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from squeeze.probes.scorer import Scorer
from squeeze.probes.scoring import Predicted, Row

PROBED = 2  # windows; each takes one forward
# Nats by which the score of a token may move in 16 bits and in 32: where a window was scored in a batch with others,
# and now alone, it is rounded otherwise, and outliers that a long text alone has are set apart for all of it (LLM.int8
# of tiny models: 0.015). Else nothing moves at all.
ROUNDED, EXACT = 0.5, 0.1
# Where activations are quantized over a whole call, other tokens move all scores a little and either way: what counts
# is how much likelier tokens were when the true text followed, nats on average; and the very token before the change.
GAINED, GAINED_NEXT = 0.3, 2.0


@dataclass(frozen=True)
class Causality:
    """Hold by how many nats tokens were likelier with their true future than with another: (tokens,) of each window.

    The last token of a window is the first that was changed: its own score, from the tokens before it. bound: what
    rounding moves; None for a model whose scores depend on what else is in a call.
    """

    gains: Sequence[npt.NDArray[np.float64]]
    bound: float | None

    @property
    def largest(self) -> float:
        """Return the largest change of any token, in nats."""
        return float(np.abs(np.nan_to_num(np.concatenate(self.gains))).max())

    @property
    def holds(self) -> bool:
        """Tell whether later tokens have moved no earlier score, as far as can be told."""
        if self.bound is not None:
            return self.largest <= self.bound
        gains = [np.nan_to_num(each) for each in self.gains]
        return bool(np.concatenate(gains).mean() <= GAINED and np.mean([each[-1] for each in gains]) <= GAINED_NEXT)

    def figures(self) -> dict[str, Any]:
        """Return the sample names and values."""
        return {"causal": self.holds, "causal_difference": self.largest}


def bound(dtype: torch.dtype) -> float:
    """Return the nats by which rounding may move the score of a token, for a model that computes in ``dtype``."""
    return EXACT if dtype is torch.float32 else ROUNDED


def probe(
    scorer: Scorer,
    rows: Sequence[Row],
    nll: Mapping[int, npt.NDArray[Any]],
    *,
    vocabulary: int,
    bound: float | None,
    seed: int,
) -> Causality:
    """Compare scores with what they are in front of another text.

    scorer: what has scored the text. rows: its windows, each the owner of its number; nll: those numbers -> (tokens,)
    float, in nats, as they were scored. vocabulary: tokens that the model knows. bound: as ``Causality`` has it.
    """
    chance = random.Random(seed)
    text = [token for row in rows for token in (*row.context, *row.continuations[0])]
    gains = []
    for row in chance.sample(rows, min(PROBED, len(rows))):
        [tokens], [number] = row.continuations, row.owners
        kept = chance.randint(len(tokens) // 2, max(len(tokens) - 2, 0))
        begin = chance.randrange(len(text))
        other = tuple(text[(begin + at) % len(text)] for at in range(len(tokens) - kept))
        if other[0] == tokens[kept]:
            other = ((tokens[kept] + 1) % vocabulary, *other[1:])
        changed = scorer.predict([Row(row.context, (tokens[:kept] + other,), (0,))])
        targets = torch.tensor(tokens[: kept + 1], device=changed.hidden.device)
        compared = Predicted(changed.hidden[: kept + 1], targets, changed.owners[: kept + 1])
        found = -scorer.log_probabilities(compared)[0].double().numpy()
        gains.append(found - nll[number][: kept + 1])
    return Causality(gains, bound)
