"""Train for a few dozen steps: deterministic, resumable, in memory that the windows of one step bound.

What is learned, and what the loss compares, is the caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.core.files import replacing
from squeeze.core.progress import training as shown
from squeeze.techniques.contract import Workplace

Loss = Callable[[torch.Tensor], torch.Tensor]  # (windows, window) int64 token ids -> scalar

WARM_UP = 0.1  # share of the steps in which the learning rate rises, before it falls to zero along a line
LONGEST_GRADIENT = 1.0  # l2 norm to which that of all parameters together is shortened
SAVE_EVERY = 60.0  # seconds between checkpoints: what a killed training loses at most, beside the step it was in


@dataclass(frozen=True)
class Plan:
    """Hold the plan of a training. steps: of the optimizer. windows: of text in each. learning_rate: the highest."""

    steps: int
    windows: int
    learning_rate: float

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = (step + 1) / max(1, round(WARM_UP * self.steps))
        return self.learning_rate * min(1.0, rise) * (1 - step / self.steps)


def train(
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    token_ids: torch.Tensor,
    plan: Plan,
    *,
    title: str,
    workplace: Workplace,
) -> None:
    """Minimise ``loss`` over the windows (samples, window) int64 of ``token_ids``, in their order, again and again.

    AdamW (Loshchilov, Hutter 2017, arXiv:1711.05101) without weight decay, on ``parameters`` alone; no dropout, no
    randomness. Beside what the loss takes, memory is three times that of the parameters (gradients and two moments).
    What a killed training has left in its workplace is gone on with, to the same result, bit for bit.
    Raises SqueezeError where there are no windows, and for a loss that is not finite.
    """
    if token_ids.numel() == 0:
        raise SqueezeError(f"{title} has no tokens, expected at least one window; name a calibration with a corpus")
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
    first, checkpoint = 0, workplace.checkpoint
    if checkpoint is not None and checkpoint.is_file():
        first, workplace.reused_seconds = _restore(checkpoint, parameters, optimizer)
    started = saved = time.monotonic()
    with shown(title, plan.steps) as trained, torch.enable_grad():
        for step in range(first, plan.steps):
            objective = loss(_windows(token_ids, step, plan.windows))
            value = float(objective.detach())
            if not isfinite(value):
                raise SqueezeError(
                    f"{title}: the loss is {value:g} in step {step + 1} of {plan.steps}, expected a finite one;"
                    f" lower learning_rate, now {plan.learning_rate:g}"
                )
            objective.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
            optimizer.param_groups[0]["lr"] = plan.rate(step)
            optimizer.step()
            optimizer.zero_grad()
            trained(step + 1, value)
            if checkpoint is not None and time.monotonic() - saved >= SAVE_EVERY:
                seconds = workplace.reused_seconds + time.monotonic() - started
                _save(checkpoint, parameters, optimizer, {"steps": step + 1, "seconds": seconds})
                saved = time.monotonic()
    for parameter in parameters:
        parameter.requires_grad_(False)


def _windows(token_ids: torch.Tensor, step: int, count: int) -> torch.Tensor:
    """Return the windows of one step, (count, window)."""
    places = torch.arange(step * count, (step + 1) * count, device=token_ids.device)
    return token_ids[places % len(token_ids)]


def _save(
    path: Path, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write the state of the training and what it took (steps and seconds) to a file, whole or not at all."""
    tensors = {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(parameters)}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"state.{i}.{name}": tensor for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={name: str(value) for name, value in progress.items()})


def _restore(path: Path, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore parameters and optimizer as ``_save`` wrote them; return the steps done, and their seconds."""
    states: dict[int, dict[str, torch.Tensor]] = {i: {} for i in range(len(parameters))}
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(file.get_tensor(f"parameter.{i}"))
        for key in file.keys():  # noqa: SIM118 - not a mapping
            if key.startswith("state."):
                _, i, name = key.split(".")
                states[int(i)][name] = file.get_tensor(key).clone()
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        progress = file.metadata()
    return int(progress["steps"]), float(progress["seconds"])
