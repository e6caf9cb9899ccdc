"""Say what each step of a recipe did, for build.json: what it lost of the quality, and what its training took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from squeeze.layers.trainable import gradients_pass
from squeeze.techniques.contract import Labelled, Workplace
from squeeze.techniques.losses import next_token
from squeeze.techniques.processes import Processes
from squeeze.techniques.training.sentence_training import logits

UNCOMPRESSED = "none"  # the step before the first one
OF_TRAINING = ("training_tokens", "trainable_parameters", "trainable_share")  # claims of a step that trains
AT_ONCE = 64  # sentences that are classified at a time


@dataclass(frozen=True)
class Look:
    """Hold how quality is looked at. figure: its name. of: what it is of a model; None where it is no finite number."""

    figure: str
    of: Callable[[nn.Module], float | None]


def parted(held_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows (n, window) int64 that nothing is trained on as two halves: to look at, and to judge steps by.

    A training with patience chooses by what it looks at, so that this text is no longer unseen.
    """
    half = len(held_out) // 2
    return held_out[:half], held_out[half:]


def unclaimed(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims that a step is given: what is claimed of an earlier training is None, not yet of this one."""
    return {name: None if name in OF_TRAINING else value for name, value in claims.items()}


def carried(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims after a step that was given ``unclaimed(before)`` and left ``after``.

    Of training they are the step's own where it has claimed any, otherwise those of before: of the last one, always.
    """
    found = {name: value for name, value in after.items() if name not in OF_TRAINING or value is not None}
    if found.keys() & set(OF_TRAINING):
        return found
    return {**found, **{name: value for name, value in before.items() if name in OF_TRAINING and name in after}}


@torch.no_grad()
def perplexity(model: nn.Module, windows: torch.Tensor) -> float | None:
    """Return the perplexity of a causal model on windows (n, window) int64 of text, one at a time.

    None where it is no finite number: such a model predicts nothing.
    """
    with gradients_pass(model):  # the steps that follow may train through what runs here
        loss = sum(float(next_token(model, window[None])) for window in windows) / len(windows)
    try:
        found = math.exp(loss)
    except OverflowError:
        return None
    return float(f"{found:.6g}") if math.isfinite(found) else None


@torch.no_grad()
def accuracy(model: nn.Module, sentences: Labelled) -> float:
    """Return the share of the sentences whose class a classifier tells; an answer that is no number tells none."""
    numbers = torch.arange(len(sentences.labels), device=sentences.labels.device)
    right = 0
    with gradients_pass(model):  # as above
        for rows in map(sentences.rows, torch.split(numbers, AT_ONCE)):
            found = logits(model, rows)
            right += int(((found.argmax(dim=-1) == rows.labels) & found.isfinite().all(dim=-1)).sum())
    return right / len(numbers)


def qualities(figure: str, names: list[str], values: list[float | None]) -> list[dict[str, Any]]:
    """Return a figure of the quality after each step, and before the first one: one more than there are names."""
    pairs = zip([UNCOMPRESSED, *names], values, strict=True)
    return [{"step": name, figure: value} for name, value in pairs]


def training(name: str, claims: Mapping[str, Any], workplace: Workplace) -> dict[str, Any]:
    """Return what the training of a step took: tokens and parameters as it claims them, the rest as it was counted.

    claims: after the step, with none of an earlier training (``unclaimed``).
    joules: None where the machine does not count them. curve: (step, loss, loss of the held-out windows).
    """
    return {
        "step": name,
        "steps": workplace.curve[-1].step if workplace.curve else 0,
        "tokens": claims.get("training_tokens"),
        "parameters": claims.get("trainable_parameters"),
        "share": claims.get("trainable_share"),
        "seconds": workplace.seconds,
        "joules": workplace.joules,
        "processes": Processes.now().count,
        "curve": [list(point) for point in workplace.curve],
    }
