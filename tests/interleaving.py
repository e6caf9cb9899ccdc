"""The rules of interleaved timing, as simulations take them for granted: one place to say which functions those are."""

import numpy as np

from squeeze.records.record import Estimate

TURN = 4  # tokens of a member before the next one's
ROUNDS = (8, 10, 12)  # after which it is asked whether there are enough
NARROW = 1.05  # an interval's end over its centre, which makes further rounds needless
NOMINAL = 0.041  # p-value at which the sequential rule calls a difference in at most 5 % of pairs, whatever the noise
TREND = 0.10  # from a process's first quarter to its last: more of it, the same way in every process, is a warm-up


def turn_ratio(candidate_turns, baseline_turns) -> float:
    """Return a round's log ratio of (turns, TURN) seconds each: the median over turns of paired medians' logs."""
    own, other = (np.median(np.asarray(turns), axis=1) for turns in (candidate_turns, baseline_turns))
    return float(np.median(np.log(own / other)))


def enough(speed_up: Estimate) -> bool:
    """Tell whether a candidate needs no further rounds: its interval's ends lie within NARROW of the centre."""
    assert speed_up.low is not None
    assert speed_up.high is not None
    return speed_up.high <= speed_up.low * NARROW**2


def trend(processes) -> bool:
    """Tell whether (rounds, tokens) seconds speed up, or slow down, by more than TREND in every single process."""
    quarters = np.array_split(np.asarray(processes), 4, axis=1)
    drift = np.median(quarters[-1], axis=1) / np.median(quarters[0], axis=1) - 1
    return bool((drift > TREND).all() or (drift < -TREND).all())
