"""How far timed logits are from scored ones, over rounds."""

from __future__ import annotations

import math

import pytest

from squeeze.records import encoded


def test_sums_are_taken_over_rounds_and_the_worst_batch_size_counts() -> None:
    rounds = [
        {"encode_apart": {"1": [0.0, 1.0], "8": [0.02, 1.0]}},
        {"encode_apart": {"1": [0.0, 3.0], "8": [0.0, 1.0]}},
    ]
    assert encoded.gap(rounds) == pytest.approx(math.sqrt(0.02 / 2))


@pytest.mark.parametrize(("sums", "gap"), [([0.0, 0.0], 0.0), ([1e-9, 0.0], 1.0)])
def test_logits_without_size(sums: list[float], gap: float) -> None:
    assert encoded.gap([{"encode_apart": {"1": sums}}]) == gap


def test_what_was_not_read_once_more_has_no_gap() -> None:
    assert encoded.gap([{}]) is None
    assert encoded.allowed(coarse=False) < encoded.allowed(coarse=True) < 1
