"""What calls two models equivalent, as simulations take it for granted: the answers that boards give."""

import numpy as np

from squeeze.records.answers import Estimates, Margins, answers
from squeeze.records.statistics import TOKEN_BLOCK, accuracy_change

__all__ = ["ACCURACY_MARGIN", "PERPLEXITY_MARGIN", "SPEED_MARGIN", "TOKEN_BLOCK", "accuracy_change", "equivalent"]

MARGINS = Margins()
SPEED_MARGIN, PERPLEXITY_MARGIN, ACCURACY_MARGIN = MARGINS.speed, MARGINS.perplexity, MARGINS.accuracy


def equivalent(kind, value, low, high, n):
    """Tell where estimates of a kind, with their 95 % intervals, are said to keep its margin."""
    shape = np.shape(value)
    known = [np.broadcast_to(np.asarray(each, dtype=np.float64), shape).ravel() for each in (value, low, high)]
    p_value, counts = np.ones(known[0].size), np.broadcast_to(np.asarray(n, dtype=np.float64), shape).ravel()
    said = answers(kind, Estimates(*known, p_value, counts), MARGINS)
    return (said.within == getattr(MARGINS, kind.margin)).reshape(shape)
