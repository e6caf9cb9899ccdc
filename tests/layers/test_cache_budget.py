"""A budget: how many tokens are held, and how many may come at once."""

from __future__ import annotations

import pytest

from squeeze.core.errors import SqueezeError
from squeeze.layers.cache_budget import Budget


def test_what_is_held_grows_to_the_limit_and_falls_back_by_a_piece() -> None:
    held = [Budget(6, 2).held(read) for read in range(13)]
    assert held == [0, 1, 2, 3, 4, 5, 4, 5, 4, 5, 4, 5, 4]  # the sixth is held while it is read


@pytest.mark.parametrize(("read", "left"), [(0, 4), (3, 1), (4, 4), (9, 3)])
def test_no_more_may_come_at_once_than_are_left_of_a_piece(read: int, left: int) -> None:
    Budget(8, 4).check(read, left)
    with pytest.raises(SqueezeError, match=f"{left + 1} tokens at once behind {read}, expected at most {left}.*read 4"):
        Budget(8, 4).check(read, left + 1)
