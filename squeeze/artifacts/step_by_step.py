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
AT_ONCE = 64  # sentences that are classified at a time


@dataclass(frozen=True)
class Look:
    """Hold how quality is looked at. figure: its name. of: what it is of a model; None where it is no finite number."""

    figure: str
    of: Callable[[nn.Module], float | None]


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
