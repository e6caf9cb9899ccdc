import numpy as np

from squeeze.boards.plots import front


def test_a_row_that_another_beats_on_both_counts_is_off_the_front():
    sizes = [100, 200, 150, 90, 200]
    perplexities = [20.0, 13.0, 21.0, 30.0, 14.0]
    assert front(sizes, perplexities).tolist() == [True, True, False, True, False]


def test_equal_rows_are_on_the_front_together():
    assert front([1, 1, 1], [2, 2, 3]).tolist() == [True, True, False]


def test_rows_with_a_missing_count_are_never_on_it():
    assert front([1, np.nan, 0.5], [2, 1, np.inf]).tolist() == [True, False, False]
    assert front([], []).tolist() == []


def test_it_is_the_definition():
    points = np.random.default_rng(0).integers(0, 12, size=(60, 2))
    beaten = [any((other <= point).all() and (other < point).any() for other in points) for point in points]
    assert front(*points.T).tolist() == (~np.array(beaten)).tolist()
