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
TIMED = re.compile(r"(decode_tokens_per_s|ttft_ms)((?:_b(\d+))?)")  # column, suffix, batch size where it is not 1
LONGEST = "max_context_estimated"


def context(values: Values) -> Estimates:
    """Return the memory of a process as a line in the prompt's tokens, from the peaks of prefills of two lengths.

    values: ``context_peak_bytes``, tokens -> peak of a whole process (on CUDA, of what torch allocated), batch 1, and
    ``cache_bytes_per_token``; ``positions``, None where the model names no most. context_fixed_bytes: the line at no
    tokens; context_bytes_per_token: its slope, at least what the cache keeps, which was counted; positions: the most
    tokens that the model takes. Nothing for a model that was not asked.
    """
    if "context_peak_bytes" not in values:
        return {}
    (few, low), (many, high) = sorted((int(tokens), peak) for tokens, peak in values["context_peak_bytes"].items())
    slope = max((high - low) / (many - few), float(values["cache_bytes_per_token"]))
    found = {
        "context_fixed_bytes": Estimate(max(round(high - slope * many), 0)),
        "context_bytes_per_token": Estimate(slope),
    }
    most = values.get("positions")
    return found if most is None else {**found, "positions": Estimate(most)}


def longest_context(record: Record, memory: float) -> Estimates:
    """Return max_context_estimated: the tokens of the longest prompt that fits ``memory`` bytes, read in one piece.

    It is computed from measured parts, not run: ``context``'s line, at most the model's positions; 0 where the process
    cannot even load. Nothing where the record lacks one of these figures.
    """
    names = ("load_peak_bytes", "context_fixed_bytes", "context_bytes_per_token", "positions")
    if not all(name in record.estimates for name in names):
        return {}
    load, fixed, per_token, positions = (record.estimates[name].value for name in names)
    fitting = max(memory - fixed, 0) / per_token if per_token > 0 else positions
    return {LONGEST: Estimate(0 if load > memory else int(min(fitting, positions)))}


def costs(record: Record, price: float) -> Estimates:
    """Return what a million tokens cost, at each batch size, on a machine of ``price`` (any currency) an hour.

    cost_per_mtok of decoding, cost_per_mtok_prefill of reading prompts; low and high from the spread of the speed.
    """
    prompt = record.cell["protocol"].get("latency", {}).get("prompt_tokens")
    return dict(_costs(record.estimates, price, prompt))


def _costs(estimates: Mapping[str, Estimate], price: float, prompt: Any) -> Iterator[tuple[str, Estimate]]:
    for name, found in estimates.items():
        if (timed := TIMED.fullmatch(name)) is None:
            continue
        kind, suffix, batch = timed.groups()
        if min(bound for bound in (found.value, found.low, found.high) if bound is not None) <= 0:
            continue  # no time and no rate, whatever its record says
        if kind == "decode_tokens_per_s":
            yield f"cost_per_mtok{suffix}", _scaled(found, lambda rate: price / HOUR / rate * MILLION)
        elif prompt:
            tokens = int(batch or 1) * int(prompt)
            yield (
                f"cost_per_mtok_prefill{suffix}",
                _scaled(found, lambda ms, tokens=tokens: price / HOUR * ms / 1000 / tokens * MILLION),
            )


def _scaled(found: Estimate, of: Any) -> Estimate:
    """Return an estimate of another quantity; that of the speed's greatest value may be the least one."""
    bounds = sorted(of(bound) for bound in (found.low, found.high) if bound is not None)
    low, high = bounds if len(bounds) == 2 else (None, None)
    return Estimate(of(found.value), low, high, n=found.n)
