"""What no compression gives is not believed; every honest row that was ever published is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.records.plausibility import MOST_SURPLUS, MOST_SURPLUS_BETTER, implausible
from squeeze.records.record import IMPLAUSIBLE, Estimate, Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from tests.fabricated import cell, record

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
CALIBRATION = {"name": "wikipedia", "corpus": "wikipedia_train", "samples": 128, "window": 512, "seed": 0}


def changed(before: float, after: float, spread: float = 0.02) -> Estimate:
    change = after - before
    return Estimate(change, change - spread * before, change + spread * before, 1e-6, 64)


def row(
    perplexity: float, kl: float, other: float | None = None, held_out: float | None = None, **more: Estimate
) -> Record:
    """A row that read a text, whose uncompressed model has perplexity 20 on each."""
    estimates = {
        "perplexity": Estimate(perplexity),
        "perplexity_delta": changed(20.0, perplexity),
        "kl_divergence": Estimate(kl, 0.9 * kl, 1.1 * kl, n=64),
        **more,
    }
    if held_out is not None:
        estimates |= {
            "perplexity_held_out": Estimate(held_out),
            "perplexity_held_out_delta": Estimate(held_out - 20.0),
        }
    if other is not None:
        estimates |= {"perplexity_ood": Estimate(other), "perplexity_ood_delta": Estimate(other - 20.0)}
    return record(cell("t", "t", {"bits": 4}, calibration=CALIBRATION), estimates)


def unread(found: Record) -> Record:
    changed_cell = cell("t", "t", {"bits": 4})
    return replace(found, cell=changed_cell.to_json(), key=changed_cell.key)


def trained(found: Record) -> Record:
    changed_cell = cell("t", "t", {"bits": 4, "training_steps": 8}, calibration=CALIBRATION)
    return replace(found, cell=changed_cell.to_json(), key=changed_cell.key)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (row(1.86, 4.0), "predicts the text 6.38 nats a token better than its distance"),
        (row(19.9, 0.5), "predicts the text 0.51 nats"),
        (row(30.0, 2.5), "predicts the text 2.09 nats"),  # worse than the uncompressed model, and yet too good
        (trained(row(15.0, 1.8)), "predicts the text 2.09 nats"),
        (
            trained(row(17.0, 0.3, held_out=19.8)),
            "gains 0.13 nats a token more on the text that it is ranked by than on text of the same",
        ),
        (row(17.0, 0.1, held_out=25.0), "gains 0.14 nats"),
        (unread(row(17.0, 0.1)), "read no text and has a loss that is lower by 0.14 nats"),
        (
            row(15.0, 0.1, other=20.0),
            "gains 0.26 nats a token more on the text that it is ranked by than on text of another",
        ),
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
        row(20.1, 0.9 * MOST_SURPLUS),  # it has forgotten much, and gained nothing
        row(18.5, 0.2, other=18.6),  # trained on other text: better on both
        trained(row(18.0, 0.8, held_out=18.5)),
        trained(row(15.0, 0.8, held_out=15.5, other=30.0)),  # it has gained on one kind of text, and lost on another
        unread(row(19.5, 0.01)),  # 2.5 % better, of which the interval leaves 0.5 %
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
    measured = [each for each in records if {"kl_divergence", "perplexity_delta"} <= each.estimates.keys()]
    learned, compressed = (
        max(_surplus(each) for each in measured if (Cell.from_json(each.cell).training is not None) is trained)
        for trained in (True, False)
    )
    assert compressed < 0.3 * MOST_SURPLUS_BETTER
    assert learned < 0.2 * MOST_SURPLUS
    figure(
        f"{len(records)} published records: none implausible; surplus at most {compressed:.2f} nats of "
        f"{MOST_SURPLUS_BETTER:g}, of trained ones {learned:.2f} of {MOST_SURPLUS:g}"
    )


def _surplus(found: Record) -> float:
    own, change, distance = (
        found.estimates[name].value for name in ("perplexity", "perplexity_delta", "kl_divergence")
    )
    return distance - math.log(own / (own - change))
