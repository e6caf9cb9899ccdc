"""Answer what a comparison with the baseline shows: better, worse, equal within a margin, or undecided.

"No difference shown" is no answer: it holds of a precise measurement and of a useless one. So a difference that is
shown is called better or worse; one that two one-sided tests keep below a margin is called equal (TOST, Schuirmann
1987, "A comparison of the two one-sided tests procedure ..."); of anything else it is said how large it may still be.
"?" stands only where something failed, with the reason. numpy and scipy only.
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass, fields
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from squeeze.core.errors import SqueezeError
from squeeze.records.record import Estimate
from squeeze.records.statistics import ALPHA

EQUAL, UNDECIDED, FAILED = "equal", "undecided", "?"
SIGNS = {"faster": "▲", "better": "▲", "slower": "▼", "worse": "▼", EQUAL: "=", UNDECIDED: "~", FAILED: "?"}
POWER = 0.80

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Margins:
    """Hold the differences that count as none, all above 0.

    Those of speed and perplexity are relative, and reach as far down as up in the logarithm; that of accuracy is a
    share of all items, that of KL is in nats a token.
    """

    speed: float = 0.05
    perplexity: float = 0.01
    accuracy: float = 0.01
    kl: float = 0.01

    @classmethod
    def of(cls, text: str) -> Margins:
        """Read margins such as ``speed=0.05,kl=0.02``; those left out keep their default.

        Raises SqueezeError for a name that is no margin, or a value that is no positive number.
        """
        known = [field.name for field in fields(cls)]
        given = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, amount = (piece.strip() for piece in part.partition("="))
            if name not in known or re.fullmatch(r"\d*\.?\d+", amount) is None or float(amount) == 0:
                raise SqueezeError(
                    f"{part!r} is no margin; expected NAME=NUMBER above 0, NAME one of {', '.join(known)}, "
                    f"such as {cls()}"
                )
            given[name] = float(amount)
        return cls(**given)

    def __str__(self) -> str:
        return ",".join(f"{field.name}={value:g}" for field, value in zip(fields(self), astuple(self), strict=True))


@dataclass(frozen=True)
class Kind:
    """Define how estimates of a kind are read.

    margin: the field of Margins. lower, higher: words for a value below and above that of no difference, which is 1
    of a ratio, else 0. unit: what its ``n`` counts, of which it takes ``fewest``. An estimate that cannot be below
    zero (``distance``) is not tested against zero, where no model but the baseline lies, but against the floor of what
    rounding does or, where that was not measured, its margin.
    tail: of each of the two one-sided tests. That of accuracies is half: with 5 % each, of rows that lose the margin on
    400 items, where answers seldom flip, 9 % were called equal.
    """

    margin: str
    lower: str
    higher: str
    unit: str
    fewest: int
    ratio: bool = False
    distance: bool = False
    tail: float = ALPHA


SPEED = Kind("speed", "slower", "faster", "rounds", 5, ratio=True)
PERPLEXITY = Kind("perplexity", "better", "worse", "token blocks", 16, ratio=True)
ACCURACY = Kind("accuracy", "worse", "better", "items", 1, tail=ALPHA / 2)
KL = Kind("kl", "", "worse", "token blocks", 16, distance=True)
KINDS = {
    r"(decode|ttft|encode)_speedup(_b\d+)?|ttft_speedup_at_\d+": SPEED,
    r"perplexity(_ood)?_delta": PERPLEXITY,
    r"acc_\w+_delta": ACCURACY,
    r"kl_divergence": KL,
}


@cache
def kind(column: str) -> Kind | None:
    """Return how to read the estimates of a leaderboard's column; None where there is no verdict on them."""
    return next((each for pattern, each in KINDS.items() if re.fullmatch(pattern, column)), None)


class Answers(NamedTuple):
    """Hold answers (rows,); None and NaN where there is nothing to say.

    within: the margin, where a value is shown to keep it; of an undecided one, how far from no difference it may still
    lie. detectable: the smallest difference that such an estimate shows with 80 % power, in one test at 5 %. reason: of
    a "?".
    """

    word: npt.NDArray[np.object_]
    within: Array
    detectable: Array
    reason: npt.NDArray[np.object_]


class Estimates(NamedTuple):
    """Hold estimates (rows,) with their 95 % intervals, p-values (corrected, where they are of a family) and n.

    floor: of a distance, that of the baseline from itself, (rows,); NaN where it was not measured.
    """

    value: Array
    low: Array
    high: Array
    p_value: Array
    n: Array
    floor: Array | float = np.nan


def answers(of: Kind, found: Estimates, margins: Margins) -> Answers:
    """Answer each of ``found``, which are ratios or differences as ``of`` says; NaN marks what is not known.

    The standard error comes from the interval, by Student's t with n - 1 degrees of freedom, on either side its own.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        value, low, high = (np.log(np.maximum(each, 0.0)) if of.ratio else each for each in found[:3])
        margin = np.log1p(getattr(margins, of.margin)) if of.ratio else getattr(margins, of.margin)
        freedom = np.where(found.n > 1, found.n - 1, np.inf)
        two_sided, one_sided = (scipy.stats.t.isf(tail, freedom) for tail in (ALPHA / 2, of.tail))
        shrunk = one_sided / two_sided  # from the 95 % interval to that of the two one-sided tests
        least, most = value - (value - low) * shrunk, value + (high - value) * shrunk
        keeps = (least > -margin) & (most < margin)
        known = np.isfinite(low) & np.isfinite(high)
        none = np.where(np.isnan(found.floor), margin, found.floor)
        differs = known & (low > none) if of.distance else found.p_value <= ALPHA
        reach = np.maximum(np.abs(low), np.abs(high))
        sizes, at = np.unique(found.n, return_inverse=True)
        detectable = (high - low) / 2 / two_sided * np.array([_noncentrality(float(n)) for n in sizes])[at]
        if of.ratio:
            reach, detectable = np.expm1(reach), np.expm1(detectable)
    has_value = np.isfinite(value) & (known | (not of.distance))
    failed = has_value & ~known & ~np.isfinite(found.p_value)
    word = np.full(value.shape, None, dtype=object)
    word[has_value] = UNDECIDED
    word[keeps] = EQUAL
    word[differs] = np.where(value[differs] > 0, of.higher, of.lower)
    word[failed] = FAILED
    reason = np.full(value.shape, "", dtype=object)
    reason[failed] = [_too_few(of, n) for n in found.n[failed]]
    within = np.where(keeps, getattr(margins, of.margin), np.where(word == UNDECIDED, reach, np.nan))
    return Answers(word, within, np.where(has_value, detectable, np.nan), reason)


@dataclass(frozen=True)
class Answer:
    """Hold one of ``Answers`` and its kind; as a string it is a few words."""

    kind: Kind
    word: str
    within: float
    detectable: float
    reason: str = ""

    @classmethod
    def to(cls, of: Kind, estimate: Estimate, margins: Margins, floor: float | None = None) -> Answer:
        """Answer one estimate by its own p-value; a distance by its ``floor``, where that is known."""
        bounds = (estimate.value, estimate.low, estimate.high, estimate.p_value, estimate.n, floor)
        found = Estimates(*(np.array([np.nan if each is None else each], dtype=np.float64) for each in bounds))
        return cls(of, *(each[0] for each in answers(of, found, margins)))

    def __str__(self) -> str:
        if self.word == FAILED:
            return f"? ({self.reason})"
        if not np.isfinite(self.within):
            return self.word
        ahead = {EQUAL: " within ", UNDECIDED: " within ±"}.get(self.word, ", yet within ")
        return f"{self.word}{ahead}{amount(self.kind, self.within)}"


def relative(change: Estimate, before: float) -> Estimate:
    """Return a change of perplexity as the ratio to the one ``before`` it, which is how PERPLEXITY is read."""
    low, value, high = (None if each is None else 1 + each / before for each in (change.low, change.value, change.high))
    return Estimate(value or 1.0, low, high, change.p_value, change.n)


def amount(of: Kind, size: float) -> str:
    """Return a difference in words: ``5 %``, ``1.2 points``, ``0.01 nats``."""
    if of.distance:
        return f"{size:.2g} nats"
    return f"{_short(100 * size)} {'%' if of.ratio else 'points'}"


def sign(word: Any, within: float) -> str:
    """Return the sign of a verdict, with a = behind where a difference that is shown keeps the margin; "" for none."""
    shown = SIGNS.get(word, "")
    return f"{shown}=" if shown in ("▲", "▼") and np.isfinite(within) else shown


def _short(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def _too_few(of: Kind, n: float) -> str:
    return f"{n:.0f} {of.unit}, {of.fewest} are needed" if np.isfinite(n) else "no interval"


@cache
def _noncentrality(n: float) -> float:
    """Return how many standard errors a mean of n values must lie off for 80 % power of the t-test at 5 %."""
    t = scipy.stats
    if not 1 < n < 1_000:
        return float(t.norm.isf(ALPHA / 2) + t.norm.isf(1 - POWER))
    critical = t.t.isf(ALPHA / 2, n - 1)
    found = scipy.optimize.brentq(lambda far: t.nct.sf(critical, n - 1, far) - POWER, 0.0, 100.0)
    return float(found)
