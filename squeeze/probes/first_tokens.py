"""Say which prompts the curve of first tokens asks for: of each length some, of one request; and what cannot be asked.

The curve is the part ``ttft_curve`` of a protocol, which most protocols lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from squeeze.core.errors import Unsupported
from squeeze.probes.latency import Prompts, spread
from squeeze.probes.samples import Samples
from squeeze.runtimes.contract import Engine

PART = "ttft_curve"
TIMES, FIRSTS, LEFT_OUT = "prompt_s", "prompt_firsts", "prompts_left_out"  # names of samples
WARMING = 2  # calls of each length before it is timed: one of either length of a pair


def of_length(prompts: Prompts, tokens: int) -> Prompts:
    """Return what draws prompts of so many tokens, on average over a pair, out of the same text."""
    return replace(prompts, latency={**prompts.latency, "prompt_tokens": tokens})


def use(tokens: int) -> str:
    """Return for what these prompts are drawn: no other call of the process draws its prompts by this name."""
    return f"first token at {tokens}"


def pool(protocol: Mapping[str, Any]) -> int:
    """Return how many tokens of text a protocol needs to draw the prompts of its curve from; 0 where it has none."""
    lengths = protocol[PART]["prompt_tokens"] if PART in protocol else []
    return max((2 * longest(tokens) for tokens in lengths), default=0)


def longest(tokens: int) -> int:
    """Return the tokens of the longer prompt of a pair of this length."""
    return tokens + spread({"prompt_tokens": tokens})


def why_not(engine: Engine, tokens: int) -> str:
    """Return why prompts of this length cannot be read; "" where they can be."""
    try:
        engine.begin(longest(tokens))
    except Unsupported as error:
        return f"{tokens:,} tokens, with prompts of up to {longest(tokens):,}: {str(error).partition(';')[0]}"
    return ""


def leave_out(samples: Samples, why: str) -> None:
    """Keep why a length is not timed, behind what was left out before."""
    before = samples.values.get(LEFT_OUT)
    samples.values[LEFT_OUT] = why if before is None else f"{before}; {why}"
