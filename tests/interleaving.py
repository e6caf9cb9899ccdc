"""The rules of interleaved timing, as simulations take them for granted: one place to say which functions those are."""

from squeeze.records import statistics
from squeeze.records.turns import turn_ratio
from squeeze.runner.flagging import MOST_TREND as TREND
from squeeze.runner.rounds import NARROW, settled

__all__ = ["NARROW", "NOMINAL", "ROUNDS", "TREND", "TURN", "TURNS", "settled", "trend", "turn_ratio"]

TURN, TURNS = 2, 32  # tokens of a member before the next one's; turns in a round of conf/protocol/smoke.yaml
ROUNDS = (8, 10, 12)  # after which it asks whether there are enough
NOMINAL = 0.041  # p-value at which the sequential rule calls a difference in at most 5 % of pairs, whatever the noise


def trend(processes) -> bool:
    """Tell whether (rounds, tokens) seconds speed up, or slow down, by more than TREND in every single process."""
    moved = [statistics.trend(process) for process in processes]
    return min(moved) > TREND or max(moved) < -TREND
