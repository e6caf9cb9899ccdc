"""Tell rows whose figures no compression of the model gives: they have seen the text that they are scored on.

A compressed model is the uncompressed one, disturbed. So it is no nearer to a text than its distance from that model
allows: if texts were drawn from the uncompressed model p, the mean loss of a row q would exceed that of p by exactly
KL(p || q). What a row has beyond that,

    surplus = KL(p || q) - (loss of q - loss of p),   in nats a token,

it has learned from somewhere else than p, or q has lost words that p allows and the text does not use. Of the rows in
results/published, from 8 to 2 bits and of perplexities from 17 to 43,409, no compressed one has more than 0.14, and the
uncompressed model trained on other Wikipedia articles has 0.29, after 128 steps 0.32; tiny models of two layers have up
to 0.4 at 2 bits, and 1.3 when training made them forget half of what they knew. A row that knows half of the text by
heart has 2.2, all of it 4.4 (tests/faults/cheats).

A row that was trained on the text, and knows it a little, is told by other text of the same kind: what honest training
gains there is what it gains on the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from squeeze.records.record import Estimate, Record, Status
from squeeze.request.cell import Cell

# All in nats a token. A loss that is lower by 0.01 is 1 % of perplexity, by 0.2 it is 18 %.
MOST_SURPLUS = 2.0
MOST_SURPLUS_BETTER = 0.5  # of an untrained row that predicts the text better than the uncompressed model
MOST_GAIN_UNREAD = 0.01  # of a row that read no text, the margin that is of no account: of those published, none gains
MOST_GAIN_OVER_HELD_OUT = 0.1  # more than on held-out text of the same kind, of which 2,048 tokens tell 0.05
MOST_GAIN_OVER_OTHER_TEXT = 0.2  # more than on text of another kind; the trained model's is 0.02 less
MOST_RIGHT_ANSWERS = 0.1  # share of a task's items, net, that a compressed model may answer and the model itself not
ELSEWHERE = (
    ("perplexity_held_out", "text of the same kind", MOST_GAIN_OVER_HELD_OUT),
    ("perplexity_ood", "text of another kind", MOST_GAIN_OVER_OTHER_TEXT),
)


def implausible(record: Record) -> str:
    """Return in a few words why an ok row's quality is not believed; "" for one that is.

    Of differences, the bound of their interval that speaks for the row is held against what is allowed; what has no
    interval shows nothing. Raises nothing for figures that are no numbers: ``squeeze verify`` names those.
    """
    if record.status is not Status.OK:
        return ""
    cell = Cell.from_json(record.cell)
    return next(_doubts(record.estimates, bool(cell.calibration), cell.training is not None), "")


def _doubts(estimates: Mapping[str, Estimate], read_text: bool, trained: bool) -> Iterator[str]:
    distance, gains = estimates.get("kl_divergence"), _gains(estimates, "perplexity")
    if distance is not None and gains is not None:
        surplus = distance.value + gains[1]
        most = MOST_SURPLUS_BETTER if gains[1] > 0 and not trained else MOST_SURPLUS
        if surplus > most:
            yield (
                f"predicts the text {surplus:.2f} nats a token better than its distance from the uncompressed model "
                f"allows, {most:g} at most are believed"
            )
    if gains is not None and not read_text and (least := gains[0]) is not None and least > MOST_GAIN_UNREAD:
        yield (
            f"read no text and has a loss that is lower by {least:.2f} nats a token at least than the uncompressed "
            f"model's, {MOST_GAIN_UNREAD:g} at most are believed"
        )
    known = ((found[1], words, most) for text, words, most in ELSEWHERE if (found := _gains(estimates, text)))
    if gains is not None and (least := gains[0]) is not None and (elsewhere := next(known, None)) is not None:
        gain, words, most = elsewhere
        if (ahead := least - max(gain, 0.0)) > most:
            yield (
                f"gains {ahead:.2f} nats a token more on the text that it is ranked by than on {words}, {most:g} at "
                "most are believed"
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
