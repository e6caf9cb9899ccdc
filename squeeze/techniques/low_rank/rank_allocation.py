"""Share out a budget of weights among matrices as ranks: where a weight more takes away the most error.

Of a matrix with singular values s_1 >= s_2 >= ..., factors of rank r have r (rows + columns) weights, and leave the
error s_(r+1)^2 + s_(r+2)^2 + ... (Eckart and Young 1936). Kept dense it has rows * columns, and leaves none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch


class Bargain(NamedTuple):
    """Hold what can be bought for one matrix: one rank more, or all that is missing until it is dense.

    gain: the error that it takes away, for each weight that it costs. matrix: its place among all.
    """

    gain: float
    matrix: int
    dense: bool


def allocate(spectra: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]], budget: float) -> list[int | None]:
    """Return the rank of each matrix; None for one that stays dense.

    spectra: of each matrix, (min(rows, columns),) in descending order, the error that each singular value takes away,
    in one unit for all. shapes: of each, (rows, columns). budget: weights that all of them may have together. Each gets
    rank one, whatever the budget; what that does not make smaller stays dense.

    The best bargains are bought first; of one that costs more than what is left, as many ranks as can be paid. So where
    nothing had to be left so, no other ranks have less error for as many weights (``bargains`` says why).
    """
    ranks: list[int | None] = [1 if rows + columns < rows * columns else None for rows, columns in shapes]
    left = max(budget - sum(min(rows + columns, rows * columns) for rows, columns in shapes), 0)
    offered = [
        bargain
        for number, (spectrum, shape) in enumerate(zip(spectra, shapes, strict=True))
        if ranks[number] is not None
        for bargain in bargains(number, spectrum, shape)
        if bargain.gain > 0
    ]
    for _, number, dense in sorted(offered, key=lambda bargain: bargain.gain, reverse=True):
        rank, (rows, columns) = ranks[number], shapes[number]
        if rank is None:
            continue
        price = rows * columns - rank * (rows + columns)
        if dense and price <= left:
            ranks[number], left = None, left - price
        else:
            affordable = int(left // (rows + columns))
            bought = affordable if dense else min(affordable, 1)
            ranks[number], left = rank + bought, left - bought * (rows + columns)
    return ranks


def bargains(matrix: int, spectrum: torch.Tensor, shape: tuple[int, int]) -> Iterator[Bargain]:
    """Yield what can be bought for a matrix of rank one, in order; gains never rise.

    From some rank on, becoming dense at once takes away more for each weight than any rank in between: it is the rank
    of least such gain, for there the line to the dense matrix touches the curve of what the ranks take away. So the
    errors that are left are a convex function of the weights that are spent, and buying by gain is buying at one price
    everywhere (Everett 1963, "Generalized Lagrange Multiplier Method", theorem 1).
    """
    rows, columns = shape
    values = spectrum.double()
    tails = values.flip(0).cumsum(0).flip(0)  # tails[r]: the error of rank r
    ranks = torch.arange(1, (rows * columns - 1) // (rows + columns) + 1)  # those with fewer weights than the matrix
    to_dense = tails[ranks] / (rows * columns - ranks * (rows + columns))
    last = int(to_dense.argmin())
    for gain in (values[1 : last + 1] / (rows + columns)).tolist():
        yield Bargain(gain, matrix, dense=False)
    yield Bargain(float(to_dense[last]), matrix, dense=True)
