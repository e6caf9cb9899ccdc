"""What guessing won is paired within a process, and what was accepted is counted over all rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from squeeze.records import drafting
from squeeze.records.estimates import known


def process(plain: float, drafted: float, steps: list[tuple[int, int]]) -> dict[str, Any]:
    counted = {
        "steps": len(steps),
        "drafted": sum(one for one, _ in steps),
        "accepted": sum(other for _, other in steps),
    }
    return {
        "drafting": {"code": {"plain_s": plain, "drafted_s": drafted, **counted}},
        "steps": {"1": steps, "8": steps},
    }


ROUNDS = [process(0.030, 0.020, [(4, 4), (4, 0)]), process(0.300, 0.200, [(4, 1)]), process(0.030, 0.020, [(4, 3)])]


def test_a_speed_up_is_that_of_the_same_text_in_the_same_process() -> None:
    """The machine was ten times slower in the second round: no ratio notices."""
    found = drafting.figures(ROUNDS)
    assert found["drafting_speedup_code"].value == pytest.approx(1.5)
    assert (found["drafting_speedup_code"].low, found["drafting_speedup_code"].n) == (None, 3)
    five = drafting.figures([*ROUNDS, *ROUNDS])["drafting_speedup_code"]
    assert (five.low, five.high) == (pytest.approx(1.5), pytest.approx(1.5))


def test_guesses_are_counted_by_step_and_by_guess_over_all_rounds() -> None:
    """Eight of sixteen were accepted, in four steps: 2 a step; by rounds 2, 1 and 3."""
    found = drafting.figures(ROUNDS)
    for ending in ("_code", "", "_b8"):
        tokens, share = found[f"accepted_tokens{ending}"], found[f"acceptance{ending}"]
        assert (tokens.value, tokens.low, tokens.high, tokens.n) == (2.0, 1.0, 3.0, 3)
        assert (share.value, share.low, share.high, share.n) == (0.5, 0.25, 0.75, 3)


def test_where_nothing_is_guessed_no_share_of_it_is_right() -> None:
    found = known(drafting.figures([process(0.02, 0.02, [(0, 0), (0, 0)])]))
    assert found["accepted_tokens_code"].value == 0
    assert "acceptance_code" not in found


def test_a_row_that_does_not_draft_has_nothing_of_it() -> None:
    assert drafting.figures([{"token_s": {"1": [0.1]}}]) == {}
    assert drafting.arrays([{"token_s": {"1": [0.1]}}]) == {}
    assert drafting.figures(drafting.of_arrays({"token_s_b1": np.ones((2, 2))})) == {}


def test_the_samples_that_a_record_keeps_give_the_same_figures() -> None:
    kept = drafting.arrays(ROUNDS)
    assert {name: array.shape for name, array in kept.items()} == {"drafting_code": (3, 5)}
    found, again = drafting.figures(ROUNDS), drafting.figures(drafting.of_arrays(kept))
    assert again == {name: found[name] for name in found if name.endswith("_code")}
    with pytest.raises(ValueError, match="zip"):
        drafting.of_arrays({"drafting_code": np.ones((3, 4))})
