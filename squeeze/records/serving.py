"""Derive what people who serve models ask for: the memory of a context, the longest one at a budget, cost at a price.

A price and a memory budget are the reader's, not the measurement's: nothing that depends on them stands in a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from squeeze.records.estimates import Estimates, Values
from squeeze.records.record import Estimate, Record

HOUR = 3600  # seconds
MILLION = 1e6
# Column, suffix, batch size where it is not 1, tokens of the prompt where they are not the protocol's.
TIMED = re.compile(r"(decode_tokens_per_s|ttft_ms)((?:_b([1-9]\d*)|_at_([1-9]\d*))?)")
LONGEST = "max_context_estimated"
HELD = "context_tokens_held"


def context(values: Values) -> Estimates:
    """Return the memory of a process as a line in the tokens that its cache holds, from prefills of two lengths.

    values: ``context_peak_bytes``, tokens -> peak of a whole process (on CUDA, of what torch allocated), batch 1;
    ``context_cache_bytes``, what the cache keeps of the longer prompt, and ``context_tokens_held``, of how many tokens,
    where it has forgotten some; ``positions``, None where the model names no most.

    A cache that keeps all holds the prompt: then the slope is that of the two peaks, and at least what the cache keeps
    of a token, which was counted. One that forgets is full at some length, and the peak grows no more: the line ends
    there (context_tokens_held). Its slope is what the cache keeps of a token that it holds, for its prompts are read a
    piece at a time, so that nothing else grows, and a line through a peak before the bend and one behind it would be
    too flat. Such a line is never below the memory of a shorter prompt.

    context_fixed_bytes: the line at no tokens; context_bytes_per_token: its slope; positions: the most tokens that the
    model takes. Nothing for a model that was not asked.
    """
    if "context_peak_bytes" not in values:
        return {}
    (few, low), (many, high) = sorted((int(tokens), peak) for tokens, peak in values["context_peak_bytes"].items())
    held = values.get(HELD, many)
    slope = kept = float(values["context_cache_bytes"]) / held
    if held == many:
        slope = max((high - low) / (many - few), kept)
    found = {
        "context_fixed_bytes": Estimate(max(round(high - slope * held), 0)),
        "context_bytes_per_token": Estimate(slope),
    }
    if held < many:
        found[HELD] = Estimate(held)
    most = values.get("positions")
    return found if most is None else {**found, "positions": Estimate(most)}


def longest_context(record: Record, memory: float) -> Estimates:
    """Return max_context_estimated: the tokens of the longest prompt that fits ``memory`` bytes, read in one piece.

    It is computed from measured parts, not run: ``context``'s line, at most the model's positions, and all of these
    where a cache that forgets fits when it is full; 0 where the process cannot even load. Nothing where the record
    lacks one of these figures.
    """
    names = ("load_peak_bytes", "context_fixed_bytes", "context_bytes_per_token", "positions")
    if not all(name in record.estimates for name in names):
        return {}
    load, fixed, per_token, positions = (record.estimates[name].value for name in names)
    fitting = max(memory - fixed, 0) / per_token if per_token > 0 else positions
    if HELD in record.estimates and fitting >= record.estimates[HELD].value:
        fitting = positions  # no prompt is too long for a cache that forgets
    return {LONGEST: Estimate(0 if load > memory else int(min(fitting, positions)))}


def costs(record: Record, price: float) -> Estimates:
    """Return what a million tokens cost on a machine of ``price`` (any currency) an hour.

    cost_per_mtok of decoding, at each batch size; cost_per_mtok_prefill of reading prompts, at each batch size and each
    length of the curve; low and high from the spread of the speed.
    """
    prompt = record.cell["protocol"].get("latency", {}).get("prompt_tokens")
    return dict(_costs(record.estimates, price, prompt))


def _costs(estimates: Mapping[str, Estimate], price: float, prompt: Any) -> Iterator[tuple[str, Estimate]]:
    for name, found in estimates.items():
        if (timed := TIMED.fullmatch(name)) is None:
            continue
        kind, suffix, batch, length = timed.groups()
        if min(bound for bound in (found.value, found.low, found.high) if bound is not None) <= 0:
            continue  # no time and no rate, whatever its record says
        if kind == "decode_tokens_per_s":
            yield f"cost_per_mtok{suffix}", _scaled(found, lambda rate: price / HOUR / rate * MILLION)
        elif length or prompt:
            tokens = int(length or int(batch or 1) * int(prompt))
            yield (
                f"cost_per_mtok_prefill{suffix}",
                _scaled(found, lambda ms, tokens=tokens: price / HOUR * ms / 1000 / tokens * MILLION),
            )


def _scaled(found: Estimate, of: Any) -> Estimate:
    """Return an estimate of another quantity; that of the speed's greatest value may be the least one."""
    bounds = sorted(of(bound) for bound in (found.low, found.high) if bound is not None)
    low, high = bounds if len(bounds) == 2 else (None, None)
    return Estimate(of(found.value), low, high, n=found.n)
