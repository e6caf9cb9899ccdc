"""Compare rates of rounds that had nothing in common: of rows whose blocks were measured at different times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

from squeeze.records.record import Estimate
from squeeze.records.statistics import ALPHA, FEWEST_ROUNDS


def ratio_apart(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Return the geometric mean of ``one`` over that of ``other``, rates of any number of rounds.

    The 95 % interval and the p-value (of "the ratio is 1") are Welch's t on the logs (Welch 1947), whose variances may
    differ; with fewer than 5 rounds on either side they are None. ``n`` counts the rounds of the side that has fewer.
    Raises ValueError for a rate that is not positive and finite.
    """
    rates = [np.asarray(each, dtype=np.float64) for each in (one, other)]
    if not all((np.isfinite(each) & (each > 0)).all() for each in rates):
        raise ValueError(f"rates must be positive and finite, found {list(one)} and {list(other)}")
    logs, fewest = [np.log(each) for each in rates], min(map(len, rates))
    centre = float(logs[0].mean() - logs[1].mean())
    if fewest < FEWEST_ROUNDS:
        return Estimate(float(np.exp(centre)), n=fewest)
    shares = [float(each.var(ddof=1)) / each.size for each in logs]
    error = float(np.sqrt(sum(shares)))
    if error == 0:
        same = float(np.exp(centre))
        return Estimate(same, same, same, float(centre == 0), fewest)
    freedom = sum(shares) ** 2 / sum(share**2 / (each.size - 1) for share, each in zip(shares, logs, strict=True))
    half = error * scipy.stats.t.isf(ALPHA / 2, freedom)
    value, low, high = np.exp([centre, centre - half, centre + half]).tolist()
    return Estimate(value, low, high, float(2 * scipy.stats.t.sf(abs(centre) / error, freedom)), fewest)
