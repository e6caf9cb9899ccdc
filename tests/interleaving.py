"""The rules of interleaved timing, as simulations take them for granted: one place to say which functions those are."""

import numpy as np

from squeeze.records.turns import turn_ratio
from squeeze.runner.rounds import NARROW, settled

__all__ = ["NARROW", "NOMINAL", "ROUNDS", "TREND", "TURN", "TURNS", "settled", "trend", "turn_ratio"]

TURN, TURNS = 4, 16  # tokens of a member before the next one's; turns in a round of conf/protocol/smoke.yaml
ROUNDS = (8, 10, 12)  # after which it asks whether there are enough
NOMINAL = 0.041  # p-value at which the sequential rule calls a difference in at most 5 % of pairs, whatever the noise
TREND = 0.10  # from a process's first quarter to its last: more of it, the same way in every process, is a warm-up


def trend(processes) -> bool:
    """Tell whether (rounds, tokens) seconds speed up, or slow down, by more than TREND in every single process."""
    quarters = np.array_split(np.asarray(processes), 4, axis=1)
    drift = np.median(quarters[-1], axis=1) / np.median(quarters[0], axis=1) - 1
    return bool((drift > TREND).all() or (drift < -TREND).all())
