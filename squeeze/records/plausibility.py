"""Tell rows whose figures no compression of the model gives: they have seen the text that they are scored on.

A compressed model is the uncompressed one, disturbed. So it is no nearer to a text than its distance from that model
allows: if texts were drawn from the uncompressed model p, the mean loss of a row q would exceed that of p by exactly
KL(p || q). What a row has beyond that,

    surplus = KL(p || q) - (loss of q - loss of p),   in nats a token,

it has learned from somewhere else than p. Of the rows in results/published, from 8 to 2 bits and of perplexities from
17 to 43,409, no compressed one has more than 0.14, and the uncompressed model trained on other Wikipedia articles has
0.29. A model that knows the text by heart has several.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from squeeze.records.record import Estimate, Record, Status

MOST_SURPLUS = 0.5  # nats a token
# Shares of a nat by which a loss may fall: 0.05 is 5 % of perplexity, 0.2 is 18 %.
MOST_GAIN_UNREAD = 0.05  # of a row that read no text: of those published, none gains anything
MOST_GAIN_OVER_OTHER_TEXT = 0.2  # more than on other text; the trained model's is 0.02 less
MOST_RIGHT_ANSWERS = 0.1  # share of a task's items, net, that a compressed model may answer and the model itself not


def implausible(record: Record) -> str:
    """Return in a few words why an ok row's quality is not believed; "" for one that is.

    Of differences, the bound of their interval that speaks for the row is held against what is allowed; what has no
    interval shows nothing. Raises nothing for figures that are no numbers: ``squeeze verify`` names those.
    """
    if record.status is not Status.OK:
        return ""
    return next(_doubts(record.estimates, read_text=bool(record.cell.get("calibration"))), "")


def _doubts(estimates: Mapping[str, Estimate], *, read_text: bool) -> Iterator[str]:
    distance, gains = estimates.get("kl_divergence"), _gains(estimates, "perplexity")
    if distance is not None and gains is not None and distance.value + gains[1] > MOST_SURPLUS:
        yield (
            f"predicts the text {distance.value + gains[1]:.2f} nats a token better than its distance from the "
            f"uncompressed model allows, {MOST_SURPLUS:g} at most are believed"
        )
    if gains is not None and not read_text and (least := gains[0]) is not None and least > MOST_GAIN_UNREAD:
        yield (
            f"read no text and has a loss that is lower by {least:.2f} nats a token at least than the uncompressed "
            f"model's, {MOST_GAIN_UNREAD:g} at most are believed"
        )
    elsewhere = _gains(estimates, "perplexity_ood")
    if gains is not None and elsewhere is not None and (least := gains[0]) is not None:
        ahead = least - max(elsewhere[1], 0.0)
        if ahead > MOST_GAIN_OVER_OTHER_TEXT:
            yield (
                f"gains {ahead:.2f} nats a token more on the text that it is ranked by than on other text, "
                f"{MOST_GAIN_OVER_OTHER_TEXT:g} at most are believed"
            )
    for name, change in estimates.items():
        if name.startswith("acc_") and name.endswith("_delta") and (change.low or 0.0) > MOST_RIGHT_ANSWERS:
            task = name.removeprefix("acc_").removesuffix("_delta")
            yield (
                f"answers {change.low:.0%} more of {task} right at least than the uncompressed model, "
                f"{MOST_RIGHT_ANSWERS:.0%} at most are believed"
            )


def _gains(estimates: Mapping[str, Estimate], name: str) -> tuple[float | None, float] | None:
    """Return by how many nats a token the loss is below the uncompressed model's: at least (95 %), and as measured.

    None where it is not known; the first alone where there is no interval.
    """
    own, change = estimates.get(name), estimates.get(f"{name}_delta")
    if own is None or change is None or not 0 < (before := own.value - change.value) < math.inf:
        return None
    least = None if change.high is None else _fall(before, before + change.high)
    return least, _fall(before, own.value)


def _fall(before: float, after: float) -> float:
    return math.log(before / after) if 0 < after < math.inf else -math.inf
