"""What no compression gives is not believed; every honest row that was ever published is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.records.plausibility import MOST_SURPLUS, implausible
from squeeze.records.record import IMPLAUSIBLE, Estimate, Record, Status
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
CALIBRATION = {"name": "wikipedia", "corpus": "wikipedia_train", "samples": 128, "window": 512, "seed": 0}


def changed(before: float, after: float, spread: float = 0.02) -> Estimate:
    change = after - before
    return Estimate(change, change - spread * before, change + spread * before, 1e-6, 64)


def row(perplexity: float, kl: float, other: float | None = None, reads: bool = True, **more: Estimate) -> Record:
    """A row whose uncompressed model has perplexity 20 on both texts."""
    estimates = {
        "perplexity": Estimate(perplexity),
        "perplexity_delta": changed(20.0, perplexity),
        "kl_divergence": Estimate(kl, 0.9 * kl, 1.1 * kl, n=64),
        **more,
    }
    if other is not None:
        estimates |= {"perplexity_ood": Estimate(other), "perplexity_ood_delta": Estimate(other - 20.0)}
    return record(cell("t", "t", {"bits": 4}, calibration=CALIBRATION if reads else {}), estimates)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (row(1.86, 4.0), "predicts the text 6.38 nats a token better than its distance"),
        (row(30.0, 1.2), "predicts the text 0.79 nats"),  # worse than the uncompressed model, and yet too good
        (row(17.0, 0.1, reads=False), "read no text and has a loss that is lower by 0.14 nats"),
        (row(15.0, 0.1, other=20.0), "gains 0.26 nats a token more on the text that it is ranked by"),
        (row(15.0, 0.1, other=40.0), "gains 0.26 nats"),  # what it loses elsewhere speaks neither for nor against it
        (row(20.0, 0.1, acc_sciq_delta=Estimate(0.3, 0.2, 0.4, 1e-9, 400)), "answers 20% more of sciq"),
    ],
)
def test_what_no_compression_gives_is_not_believed(found: Record, words: str) -> None:
    assert implausible(found).startswith(words)
    assert "at most are believed" in implausible(found)


@pytest.mark.parametrize(
    "found",
    [
        row(20.0, 0.0),
        row(40.0, math.log(2.0)),  # as much worse as it is far
        row(40.0, math.log(2.0) + 0.9 * MOST_SURPLUS),
        row(18.5, 0.2, other=18.6),  # trained on other text: better on both
        row(19.5, 0.01, reads=False),  # 2.5 % better, of which the interval leaves less than 1 %
        row(15.0, 0.1, other=16.0),
        row(20.0, 0.1, acc_sciq_delta=Estimate(0.15, 0.05, 0.25, 0.01, 100)),
        replace(row(1.86, 4.0), status=Status.DIVERGED),
        replace(row(1.86, 4.0), estimates={"perplexity": Estimate(1.86)}),  # no distance, no change: nothing to hold
        replace(row(1.86, 4.0), estimates={"perplexity": Estimate(1.86), "perplexity_delta": Estimate(math.nan)}),
        replace(row(1.86, 4.0), estimates={"perplexity": Estimate(1.0), "perplexity_delta": Estimate(2.0)}),
    ],
)
def test_what_compression_may_give_is_believed(found: Record) -> None:
    assert implausible(found) == ""


@pytest.mark.promise(16)
def test_no_published_row_is_called_implausible(figure: Callable[[str], None]) -> None:
    records = [
        record for folder in sorted(PUBLISHED.glob("*/records")) for record in RecordStore(folder.parent).records()
    ]
    assert len(records) > 50
    assert [record.attempt for record in records if implausible(record) or IMPLAUSIBLE in record.flags] == []
    surplus = max(
        _surplus(record) for record in records if {"kl_divergence", "perplexity_delta"} <= record.estimates.keys()
    )
    assert surplus < 0.6 * MOST_SURPLUS
    figure(
        f"{len(records)} published records: none implausible; surplus at most {surplus:.2f} nats of {MOST_SURPLUS:g}"
    )


def _surplus(found: Record) -> float:
    own, change, distance = (
        found.estimates[name].value for name in ("perplexity", "perplexity_delta", "kl_divergence")
    )
    return distance - math.log(own / (own - change))
