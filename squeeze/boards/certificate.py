"""Say in words whether a row is as good as the model that was compressed: equivalent, worse or undecided.

A figure is *equivalent* where it is shown to keep the margin, *worse* where a loss is shown and that is not, else
*undecided*: the answers of `squeeze.records.answers`. Of the divergence, no loss is the noise floor: how far the
uncompressed model is from itself when the same mathematics is rounded otherwise. A row whose divergence lies below that
floor is the uncompressed model, as far as the text can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from squeeze.records.answers import ACCURACY, FAILED, KL, PERPLEXITY, UNDECIDED, Answer, Margins, relative
from squeeze.records.record import Estimate, Record

EQUIVALENT, WORSE = "equivalent", "worse"
NOT_MEASURED = "another rounding; not measured"


@dataclass(frozen=True)
class Finding:
    """Hold what one figure says: ``verdict`` of it, in ``words``; ``settles``: alone, it makes the row equivalent."""

    name: str
    verdict: str
    words: str
    settles: bool = False


def lines(record: Record, margins: Margins) -> list[str]:
    """Return a row's verdict against its own baseline, and what it rests on, a line each; none without a divergence."""
    if "kl_median" not in record.estimates:  # a baseline, an encoder, or a record of before these figures
        return []
    findings = list(_findings(record, margins))
    told = [f"    {finding.name}: {finding.words}: {finding.verdict}" for finding in findings]
    return [f"  against its own baseline: {overall(findings)}", *told, *_details(record)]


def overall(findings: list[Finding]) -> str:
    """Return the verdict on the row: worse in one figure is worse, equivalent needs all or one that settles it."""
    by_verdict = {word: [each.name for each in findings if each.verdict == word] for word in (WORSE, UNDECIDED)}
    if by_verdict[WORSE]:
        return f"{WORSE} ({', '.join(by_verdict[WORSE])})"
    if by_verdict[UNDECIDED] and not any(finding.settles for finding in findings):
        return f"{UNDECIDED} ({', '.join(by_verdict[UNDECIDED])})"
    return EQUIVALENT


def _findings(record: Record, margins: Margins) -> Iterator[Finding]:
    found = record.estimates
    yield _divergence(record, margins)
    if {"perplexity", "perplexity_delta"} <= found.keys():
        delta = found["perplexity_delta"]
        before = found["perplexity"].value - delta.value
        verdict = _verdict(Answer.to(PERPLEXITY, relative(delta, before), margins))
        yield Finding("perplexity", verdict, _words(_scaled(delta, 100 / before), " %", margins.perplexity))
    if (change := found.get("acc_pooled_delta")) is not None:
        verdict = _verdict(Answer.to(ACCURACY, change, margins))
        yield Finding("accuracy", verdict, _words(_scaled(change, 100), " points", margins.accuracy))


def _divergence(record: Record, margins: Margins) -> Finding:
    value, floor = record.estimates["kl_divergence"], record.estimates.get("kl_floor")
    how = record.realised.get("noise_floor", NOT_MEASURED)
    said = f"{value.value:.2g} nats{_interval(value, '.2g')}"
    if value.high is None:
        unit = "blocks of text" if "perplexity" in record.estimates else "texts"
        return Finding("KL", UNDECIDED, f"{said}; {value.n} {unit} are too few for an interval")
    if floor is None:
        words = f"{said}, no noise floor ({NOT_MEASURED}), margin {margins.kl:g}"
        return Finding("KL", _verdict(Answer.to(KL, value, margins)), words)
    against = f"the noise floor {floor.value:.2g} ({how}; {floor.n:,} tokens)"
    if value.high <= floor.value:
        return Finding("KL", EQUIVALENT, f"{said} lies below {against}: no loss shown", settles=True)
    words = f"{said}, {against}, margin {margins.kl:g}"
    return Finding("KL", _verdict(Answer.to(KL, value, margins, floor.value)), words)


def _verdict(answer: Answer) -> str:
    """Return the word for an answer: a difference that is shown to keep the margin is none."""
    if answer.word in (UNDECIDED, FAILED):
        return UNDECIDED
    return EQUIVALENT if isfinite(answer.within) else answer.word


def _words(change: Estimate, unit: str, margin: float) -> str:
    few = "; too few samples for an interval" if change.low is None else ""
    return f"{change.value:+.2f}{_interval(change, '+.2f')}{unit}, margin {100 * margin:g}{unit}{few}"


def _details(record: Record) -> Iterator[str]:
    """Yield what no margin judges: the tail of the divergence, agreement, generations, retained accuracy."""
    found = record.estimates
    parts = [f"{name} {found[f'kl_{name}'].value:.2g}" for name in ("median", "p90", "p99")]
    bands = (("confident", "at least 0.9"), ("likely", "0.5 to 0.9"), ("unsure", "below 0.5"))
    sure = [f"{found[f'kl_{name}'].value:.2g} ({words})" for name, words in bands if f"kl_{name}" in found]
    yield f"    KL {', '.join(parts)}" + (f"; by the baseline's confidence {', '.join(sure)}" if sure else "")
    if (top1 := found.get("top1_agreement")) is not None:
        floor = found.get("top1_floor")
        against = "" if floor is None else f"; the baseline with itself {floor.value:.1%}"
        shown = _scaled(top1, 100)
        what = "likeliest token" if "perplexity" in found else "class"
        yield f"    same {what}: {shown.value:.1f}{_interval(shown, '.1f')} %{against}"
    if (share := found.get("divergent_share")) is not None:
        floor = found.get("divergent_floor")
        against = "" if floor is None else f"; the baseline with itself {floor.value:.0%}"
        yield (
            f"    greedy continuations of {share.n} prompts: {share.value:.0%} of tokens differ, the first after "
            f"{found['first_divergence'].value:g} (median){against}; repeated 4-grams "
            f"{found['repetition'].value:.0%}, the baseline's {found['baseline_repetition'].value:.0%}"
        )
    if (kept := found.get("retained_accuracy")) is not None:
        yield f"    keeps at least {kept.value:.1%} of the accuracy (one-sided 95 %, {kept.n:,} items)"


def _scaled(estimate: Estimate, by: float) -> Estimate:
    """Return a positive multiple of a change, its interval too."""
    low, high = (None if each is None else by * each for each in (estimate.low, estimate.high))
    return Estimate(by * estimate.value, low, high, n=estimate.n)


def _interval(estimate: Estimate, digits: str) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{estimate.low:{digits}}, {estimate.high:{digits}}]"
