"""Ranks out of one budget: worked out by hand, and against all choices that there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch

from squeeze.techniques.low_rank.rank_allocation import allocate, bargains

Ranks = Sequence[int | None]

# Of 8 x 8 weights a rank has 16, and 3 ranks are fewer weights than all 64.
STEEP = torch.tensor([8, 4, 2, 1, 0.5, 0.25, 0.125, 0.125])  # rank 2: 4 / 16 a weight; then dense: 4 / 32
FLAT = torch.ones(8)  # dense at once: 7 / 48, more than 1 / 16 a rank


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0, [1, 1]),
        (32, [1, 1]),
        (47, [1, 1]),
        (48, [2, 1]),
        (64, [2, 2]),
        (95, [2, 3]),
        (96, [2, None]),
        (127, [3, None]),
        (128, [None, None]),
        (1000, [None, None]),
    ],
)
def test_the_best_bargains_are_bought_first(budget: int, expected: Ranks) -> None:
    assert allocate([STEEP, FLAT], [(8, 8), (8, 8)], budget) == expected
    assert allocate([FLAT, STEEP], [(8, 8), (8, 8)], budget) == expected[::-1]


def test_a_rank_of_a_small_matrix_costs_less() -> None:
    """8 + 8 against 8 + 32 weights."""
    shapes = [(8, 8), (8, 32)]
    assert allocate([STEEP, STEEP], shapes, 16 + 40 + 16) == [2, 1]
    assert allocate([STEEP, 3 * STEEP], shapes, 16 + 40 + 40) == [1, 2]


def test_nothing_is_spent_on_what_takes_away_no_error() -> None:
    assert allocate([torch.tensor([2.0, 1, 0, 0, 0, 0, 0, 0]), torch.zeros(8)], [(8, 8), (8, 8)], 1000) == [2, 1]


@pytest.mark.parametrize("shape", [(1, 5), (2, 2)])
def test_what_rank_one_does_not_make_smaller_stays_dense(shape: tuple[int, int]) -> None:
    assert allocate([torch.ones(min(shape))], [shape], 0) == [None]


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_as_few_weights_leaves_less_error(seed: int) -> None:
    shapes = [(6, 6), (4, 9), (5, 12)]
    spectra = drawn(shapes, seed)
    choices = [[*range(1, (rows * columns - 1) // (rows + columns) + 1), None] for rows, columns in shapes]
    everything = [(weights(ranks, shapes), error(ranks, spectra)) for ranks in itertools.product(*choices)]
    ends = list(bought_one_after_the_other(spectra, shapes))
    assert len(ends) > 4
    for spent in ends:
        ranks = allocate(spectra, shapes, spent)
        assert weights(ranks, shapes) == spent
        assert error(ranks, spectra) == pytest.approx(min(left for cost, left in everything if cost <= spent))
    for budget in range(ends[0], sum(map(math.prod, shapes)) + 1):
        ranks = allocate(spectra, shapes, budget)
        before = max(spent for spent in ends if spent <= budget)
        assert weights(ranks, shapes) <= budget
        assert error(ranks, spectra) <= error(allocate(spectra, shapes, before), spectra) + 1e-9


def drawn(shapes: Sequence[tuple[int, int]], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    of_size = [torch.rand(min(shape), generator=generator).double() ** 4 for shape in shapes]
    return [values.sort(descending=True).values for values in of_size]


def bought_one_after_the_other(spectra: list[torch.Tensor], shapes: list[tuple[int, int]]) -> Iterator[int]:
    """The weights after each purchase, from rank one everywhere on."""
    ranks = [1] * len(shapes)
    spent = sum(map(sum, shapes))
    yield spent
    offered = [
        each for number, pair in enumerate(zip(spectra, shapes, strict=True)) for each in bargains(number, *pair)
    ]
    for _, number, dense in sorted(offered, key=lambda each: -each.gain):
        price = math.prod(shapes[number]) - ranks[number] * sum(shapes[number]) if dense else sum(shapes[number])
        ranks[number] += 1
        spent += price
        yield spent


def weights(ranks: Ranks, shapes: Sequence[tuple[int, int]]) -> int:
    pairs = zip(ranks, shapes, strict=True)
    return sum(math.prod(shape) if rank is None else rank * sum(shape) for rank, shape in pairs)


def error(ranks: Ranks, spectra: Sequence[torch.Tensor]) -> float:
    return sum(0.0 if rank is None else float(values[rank:].sum()) for rank, values in zip(ranks, spectra, strict=True))
