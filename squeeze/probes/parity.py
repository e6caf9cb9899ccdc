"""Hold an engine's logits against those of the eager model of the same artifact, before anything of it is timed.

An export may be wrong where no error says so: rows of another order, a norm's epsilon, a rotary base. What both predict
at the same positions of real text must be the same, but for rounding. How much rounding does is known: bfloat16 against
itself, read in other pieces, has another likeliest token at 1.3 % of SmolLM2-135M's positions (``top1_floor`` of the
published runs), where two tokens are nearly as likely. So an engine that computes what the artifact holds must find the
token likeliest that the eager model finds likeliest, or nearly so, at 99 % of the positions; else its row is invalid.
Of one whose weights are quantized further, the differences are shown, and judged by its quality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError
from squeeze.probes.divergence import relative_entropy, wide_head
from squeeze.probes.scoring import HEAD_ROWS
from squeeze.runtimes.contract import Engine
from squeeze.runtimes.eager import Eager

POSITIONS = 512
FEWEST_EQUAL = 0.99  # of the positions, of an engine that computes what the artifact holds
# Nats below the likeliest token at which another one is as likely but for rounding in an artifact's dtype. From the KL
# of bfloat16 with itself, 0.0007 nats, a logit is moved by 0.04, and the difference of two by 0.05: four times that.
NEARLY = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.2}


@dataclass(frozen=True)
class Parity:
    """Hold how far an engine is from the eager model, over some positions of a text.

    equal: share of positions where both find the same token likeliest. near: share where the eager model finds the
    engine's token as likely but for rounding. difference: the largest |difference of log-probability| of a token of
    the text, nats. kl: KL(eager || engine), nats a position. owed: whether the engine owes the same tokens.
    """

    positions: int
    equal: float
    near: float
    difference: float
    kl: float
    owed: bool

    def figures(self) -> dict[str, Any]:
        """Return the sample names and values; a difference without bounds has no value."""
        return {
            "greedy_agreement": self.equal,
            "greedy_within_rounding": self.near,
            "parity_difference": self.difference if math.isfinite(self.difference) else None,
            "parity_kl": self.kl if math.isfinite(self.kl) else None,
        }

    def check(self, runtime: str) -> None:
        """Raise IntegrityError where an engine that owes the eager model's tokens chooses others."""
        if self.owed and not self.near >= FEWEST_EQUAL:
            raise IntegrityError(
                f"{runtime} chooses other tokens than the eager model of the same artifact at {1 - self.near:.1%} of "
                f"{self.positions} positions beyond rounding, expected {1 - FEWEST_EQUAL:.0%} at the most; its export "
                "is not the artifact"
            )


def compared(engine: Engine, folder: Path, runtime: Mapping[str, Any], token_ids: Tensor) -> Parity:
    """Compare an engine that has loaded the artifact in ``folder`` with the eager model of the same artifact.

    runtime: the cell's, of which device and threads are the eager model's, too. token_ids: (POSITIONS + 1,) int64, of
    real text: the last one is predicted only. Raises Unsupported where either has too few positions.
    """
    description = artifact.describe(folder)
    inputs = token_ids[None, :-1]
    expected = eager_logits(folder, runtime, inputs)
    found = engine.logits(inputs.to(runtime["device"]))[0].float().cpu()
    owed = engine.exact and holds_floats(description)
    return between(expected, found, token_ids[1:], NEARLY[description["dtype"]], owed=owed)


@torch.inference_mode()
def eager_logits(folder: Path, runtime: Mapping[str, Any], inputs: Tensor) -> Tensor:
    """Return the logits of the eager model after each token, (1, tokens) int64 -> (tokens, vocabulary) float32.

    Its head is applied in float32, for rounding logits to 16 bits makes many tokens equally likely.
    """
    eager = Eager(str(runtime["device"]), int(runtime["threads"])).load(folder)
    model = eager.subject.model
    hidden = eager.states(model, input_ids=inputs.to(runtime["device"]), use_cache=False)[0]
    head = wide_head(model)
    return torch.cat([head(part).cpu() for part in torch.split(hidden, HEAD_ROWS)])


def between(expected: Tensor, found: Tensor, targets: Tensor, nearly: float, *, owed: bool) -> Parity:
    """Compare logits (n, vocabulary), the eager model's and an engine's, that predict ``targets``, (n,) int64.

    nearly: nats at which two tokens are as likely. What is no number is as far as can be. Raises IntegrityError for
    other vocabularies.
    """
    if expected.shape != found.shape:
        raise IntegrityError(
            f"the engine predicts {found.shape[-1]:,} tokens at {len(found)} positions, expected "
            f"{expected.shape[-1]:,} at {len(expected)}; its export is not the artifact"
        )
    log_expected, log_found = (F.log_softmax(each.float(), dim=-1) for each in (expected, found))
    likeliest, chosen = expected.argmax(-1), found.argmax(-1)
    below = _of(log_expected, likeliest) - _of(log_expected, chosen)
    apart = (_of(log_expected, targets) - _of(log_found, targets)).abs()
    sound = found.isfinite().all(-1)
    return Parity(
        len(targets),
        float(((likeliest == chosen) & sound).double().mean()),
        float(((below <= nearly) & sound).double().mean()),
        float(apart.max()),
        float(relative_entropy(log_expected, log_found).double().mean()),
        owed,
    )


def holds_floats(description: Mapping[str, Any]) -> bool:
    """Tell whether an artifact, by its description, holds plain numbers in all its matrices, and no library's codes."""
    return description["loader"] == "squeeze" and "bits" not in description["claims"]


def _of(logs: Tensor, tokens: Tensor) -> Tensor:
    return logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
