"""Summarise how far one model is from another on the same tokens: loss, KL, agreement, hidden states block by block.

The unit of replication is a block of at least 512 consecutive tokens, as for perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.core.errors import SqueezeError
from squeeze.records.record import Estimate
from squeeze.records.statistics import TOKEN_BLOCK, block_mean, block_means, perplexity_ratio

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TokenScores:
    """Hold what two models, A and B, predict at each of n positions of a text, in order.

    kl: KL(A || B) in nats; agree: whether both find the same token likeliest; nll_a, nll_b: of the token that follows,
    in nats; all (n,).
    """

    kl: Array
    agree: Array
    nll_a: Array
    nll_b: Array


@dataclass(frozen=True)
class Guess:
    """Hold the token that a model finds likeliest, its probability, and that of the token that really follows."""

    token: str
    probability: float
    of_actual: float


@dataclass(frozen=True)
class Worst:
    """Hold a position where the models differ most. context: the text before it; actual: the token that follows."""

    position: int
    kl: float
    context: str
    actual: str
    a: Guess
    b: Guess


@dataclass(frozen=True)
class StateError:
    """Hold how far B's hidden states are from A's. cosine: the mean over tokens.

    error: ||h_B - h_A|| / ||h_A||, Frobenius norms over all tokens; median_error: the median over tokens of each one's
    own ratio, which a few tokens of huge norm do not rule.
    """

    error: float
    median_error: float
    cosine: float


@dataclass(frozen=True)
class Layer:
    """Hold the error after a block (or the embeddings). alone: with A's hidden states as the block's input."""

    name: str
    accumulated: StateError
    alone: StateError | None = None


@dataclass(frozen=True)
class Distance:
    """Hold how far B is from A, the reference.

    tokens: predicted ones. kl: its mean in nats; kl_quantiles over tokens; top1: the share of positions where both find
    the same token likeliest. Intervals are None with fewer than 16 blocks of tokens. layers: none where the two
    cannot be laid side by side, for which no_layers gives the reason.
    """

    a: str
    b: str
    text: str
    tokens: int
    window: int
    blocks: int
    perplexity_a: float
    perplexity_b: float
    perplexity_ratio: Estimate
    kl: Estimate
    kl_quantiles: Mapping[str, float]
    top1: Estimate
    worst: tuple[Worst, ...]
    layers: tuple[Layer, ...]
    no_layers: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; of estimates, the fields that are known."""
        estimates = {name: getattr(self, name).to_json() for name in ("perplexity_ratio", "kl", "top1")}
        return {**asdict(self), "block_tokens": TOKEN_BLOCK, **estimates}


def overall(scores: TokenScores) -> dict[str, Any]:
    """Return the fields of ``Distance`` that follow from the scores of tokens.

    Raises SqueezeError where a model's predictions are not finite.
    """
    finite = np.isfinite(scores.kl) & np.isfinite(scores.nll_a) & np.isfinite(scores.nll_b)
    if not finite.all():
        raise SqueezeError(
            f"predictions are not finite at {int((~finite).sum()):,} of {finite.size:,} tokens, the first of them "
            f"{int(finite.argmin()):,}; a model is damaged, or overflows in its dtype (load it in float32 to tell)"
        )
    blocks = finite.size // TOKEN_BLOCK or 1
    return {
        "tokens": finite.size,
        "blocks": blocks,
        "perplexity_a": float(np.exp(scores.nll_a.mean(dtype=np.float64))),
        "perplexity_b": float(np.exp(scores.nll_b.mean(dtype=np.float64))),
        "perplexity_ratio": perplexity_ratio(block_means(scores.nll_b, blocks), block_means(scores.nll_a, blocks)),
        "kl": block_mean(scores.kl, blocks, 0.0),
        "kl_quantiles": {name: float(np.quantile(scores.kl, share)) for name, share in QUANTILES.items()},
        "top1": block_mean(scores.agree, blocks, 0.0, 1.0),
    }
