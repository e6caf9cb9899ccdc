"""Pareto fronts: the rows that no other row beats on both counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def front(costs: npt.ArrayLike, losses: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which rows are on the front when both costs and losses (rows,) shall be small; of equal rows, all are.

    A row is off the front when another one is as good on both counts and better on one. A row with a missing (NaN)
    count is never on it. For a count that shall be large, give its negative.
    """
    points = np.column_stack([np.asarray(costs, dtype=np.float64), np.asarray(losses, dtype=np.float64)])
    result = np.zeros(len(points), dtype=bool)
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    best = np.inf
    order = known[np.lexsort(points[known].T[::-1])]  # by cost, then by loss
    for index in order:
        cost, loss = points[index]
        if loss < best:
            best, cost_of_best = loss, cost
            result[index] = True
        elif loss == best and cost == cost_of_best:
            result[index] = True
    return result
