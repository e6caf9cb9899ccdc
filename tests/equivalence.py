"""What calls two models equivalent, as simulations take it for granted: one place to say which functions those are."""

import numpy as np
from scipy import stats

from squeeze.records.record import Estimate
from squeeze.records.statistics import ALPHA

SPEED_MARGIN, PERPLEXITY_MARGIN, ACCURACY_MARGIN = 0.05, 0.01, 0.01  # shares of the baseline's; of all items
BLOCK = 512  # tokens: the unit of a text


def equivalent(low, high, margin):
    """Tell where 95 % intervals of a change lie within the margin: two one-sided tests at 2.5 % each."""
    return (-margin <= low) & (high <= margin)


def accuracy_change(candidate, baseline) -> Estimate:
    """Return the change of accuracy on the same items (Bonett & Price 2012, eq. 4: Wald's, a flip more each way)."""
    n = candidate.size
    lost, won = int((baseline & ~candidate).sum()), int((candidate & ~baseline).sum())
    low, high = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = stats.norm.isf(ALPHA / 2) * np.sqrt((low + high - (low - high) ** 2) / (n + 2))
    return Estimate((won - lost) / n, low - high - half, low - high + half, n=n)
