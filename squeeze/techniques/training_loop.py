"""Train for a few dozen steps: deterministic, resumable, in memory that the windows of one step bound.

What is learned, and what the loss compares, is the caller's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.core.progress import training as shown
from squeeze.techniques.contract import EnergyMeter, Point, Workplace
from squeeze.techniques.processes import Processes
from squeeze.techniques.training_state import State

Loss = Callable[[torch.Tensor], torch.Tensor]  # rows (n, ...) int64, such as windows of token ids -> scalar, their mean
AfterStep = Callable[[int], None]  # how many steps of the optimizer are done
Schedule = Literal["linear", "cosine", "constant"]

WARM_UP = 0.1  # share of the steps in which the learning rate rises, before it falls as the schedule says
LONGEST_GRADIENT = 1.0  # l2 norm to which that of all parameters together is shortened
SAVE_EVERY = 60.0  # seconds between checkpoints: what a killed training loses at most, beside the step it was in
LOOKS = 10  # of a training with patience at the held-out windows, at most, beside the one before the first step


@dataclass(frozen=True)
class Plan:
    """Hold the plan of a training.

    steps: of the optimizer. windows: of text in each. learning_rate: the highest.
    at_once: windows whose activations are held together; the gradients of a step's others are added up; None: all.
    schedule: of the learning rate after the warm-up: along a line to zero, along half a cosine (Loshchilov, Hutter
    2016, arXiv:1608.03983, eq. 5), or constant.
    patience: how many looks at the held-out windows may find no lower loss before the training ends; in the end the
    parameters go back to where that loss was least. None: it takes all steps, and leaves the last one's parameters.
    Raises Unsupported for an unknown schedule, for numbers below 1, and for a learning rate that is not above 0.
    """

    steps: int
    windows: int
    learning_rate: float
    at_once: int | None = None
    schedule: Schedule = "linear"
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise Unsupported(f"schedule={self.schedule!r} is not known; choose from: {', '.join(get_args(Schedule))}")
        for name, value in (("at_once", self.at_once), ("patience", self.patience)):
            if value is not None and value < 1:
                raise Unsupported(f"{name}={value} is not allowed, expected at least 1, or null")
        for name, count in (("training_steps", self.steps), ("windows", self.windows)):
            if count < 1:
                raise Unsupported(f"{name}={count} is not allowed, expected at least 1")
        if not self.learning_rate > 0:
            raise Unsupported(f"learning_rate={self.learning_rate:g} is not allowed, expected a number above 0")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = (step + 1) / max(1, round(WARM_UP * self.steps))
        done = step / self.steps
        falls = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
        return self.learning_rate * min(1.0, rise) * falls[self.schedule]

    def looks_after(self, steps: int) -> bool:
        """Tell whether the held-out windows are looked at after so many steps.

        They are before the first step and after the last; with ``patience``, after every tenth of them, too.
        """
        if steps in (0, self.steps):
            return True
        return self.patience is not None and steps % math.ceil(self.steps / LOOKS) == 0


def train(
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    token_ids: torch.Tensor,
    plan: Plan,
    *,
    title: str,
    workplace: Workplace,
    held_out: torch.Tensor | None = None,
    after_step: AfterStep | None = None,
) -> int:
    """Minimise ``loss`` over the rows (samples, window) int64 of ``token_ids``, in their order, again and again.

    AdamW (Loshchilov, Hutter 2017, arXiv:1711.05101) without weight decay, on ``parameters`` alone; no dropout, no
    randomness: a loss depends on its rows and on what is trained, and is the mean over its rows. Beside what the loss
    takes, memory is three times that of the parameters (gradients and two moments), four times with ``patience``.
    What a killed training has left in its workplace is gone on with, to the same result, bit for bit.

    held_out: rows that are not trained on; their loss, without gradient, is in the curve that the workplace keeps. What
    it takes to look at them is no part of the training's seconds and joules.
    after_step: called after each step of the optimizer, while the gradients that made it are still there; it may change
    the parameters. What it knows has to follow from these and from the step, or a killed training is not gone on with.
    Where several processes have joined (``processes``), each computes its share of the rows of every step.

    Returns the steps done: those of the plan, or fewer where ``patience`` ended it.
    Raises SqueezeError where there are no rows, none held out for ``patience`` to look at, or fewer in a step than
    processes; and for a loss that is not finite.
    """
    together = Processes.now()
    rows_held_out = None if held_out is None or held_out.numel() == 0 else held_out
    _check(title, token_ids, plan, rows_held_out, together)
    for parameter in parameters:
        parameter.requires_grad_(True)
    together.take_over(parameters)
    state = State(parameters, torch.optim.AdamW(parameters, weight_decay=0.0, fused=True))
    if (checkpoint := workplace.checkpoint) is not None and checkpoint.is_file():
        state.restore(checkpoint)
        workplace.reused_seconds += state.seconds
    account = _Account(state, workplace.meter if together.count == 1 else None)
    saved = account.since
    keeps_best, device = plan.patience is not None, parameters[0].device

    def look(steps: int) -> float | None:
        if rows_held_out is None or not plan.looks_after(steps):
            return None
        account.settle()
        found = together.sum(_mean_loss(loss, rows_held_out, plan, together), device)
        account.skip()
        return _finite(found, f"{title}: the loss of the held-out windows", steps, plan)

    with shown(title, plan.steps) as trained, torch.enable_grad():
        if not state.curve and (before := look(0)) is not None:
            state.add(Point(0, None, before), keeps_best=keeps_best)
        for step in range(state.steps, plan.steps):
            value = _backward(loss, _rows(token_ids, step, plan.windows), plan, together)
            value = _finite(together.sum(value, device), f"{title}: the loss", step + 1, plan)
            together.sum_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
            state.optimizer.param_groups[0]["lr"] = plan.rate(step)
            state.optimizer.step()
            if after_step is not None:
                after_step(step + 1)
            state.optimizer.zero_grad()
            state.add(Point(step + 1, value, look(step + 1)), keeps_best=keeps_best)
            trained(step + 1, value)
            if plan.patience is not None and state.waited >= plan.patience:
                break
            if checkpoint is not None and together.is_first and time.monotonic() - saved >= SAVE_EVERY:
                account.settle()
                state.save(checkpoint)
                saved = account.since
    account.settle()
    state.go_back_to_best()
    for parameter in parameters:
        parameter.requires_grad_(False)
    workplace.ended(state.curve, state.seconds, state.joules)
    return state.steps


@contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let the blocks keep nothing but their inputs for the backward pass, which runs each of them forward once more.

    Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174, section 4): the activations of one block at a time are
    in memory, for a third more computing. Losses and gradients stay the same, bit for bit.
    """
    changed = list(dict.fromkeys(blocks))  # one that stands in several places once
    before = [block.__dict__.get("forward") for block in changed]
    for block in changed:
        block.__dict__["forward"] = partial(recomputed, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(changed, before, strict=True):
            del block.__dict__["forward"]
            if forward is not None:
                block.__dict__["forward"] = forward


@dataclass
class _Account:
    """Bring what training a state has cost up to date: seconds and, where a meter counts them, joules.

    since: when either was last settled or skipped.
    """

    state: State
    meter: EnergyMeter | None
    since: float = field(default_factory=lambda: time.monotonic())

    def __post_init__(self) -> None:
        if self.meter is not None:
            self.meter.start()

    def settle(self) -> None:
        """Add what was spent since then to the training's."""
        seconds, joules = self._spent()
        self.state.seconds += seconds
        self.state.joules = None if self.state.joules is None or joules is None else self.state.joules + joules

    def skip(self) -> None:
        """Leave out what was spent since then: nothing was trained meanwhile."""
        self._spent()

    def _spent(self) -> tuple[float, float | None]:
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        return seconds, self._counted()

    def _counted(self) -> float | None:
        """Return the joules since this was last asked; None where nothing counts them."""
        if self.meter is None or self.meter.joules is None:
            return None
        before = self.meter.joules
        self.meter.stop()
        counted = self.meter.joules - before
        self.meter.start()
        return counted


def _check(title: str, rows: torch.Tensor, plan: Plan, held_out: torch.Tensor | None, together: Processes) -> None:
    if rows.numel() == 0:
        raise SqueezeError(f"{title} has no tokens, expected at least one window; name a calibration with a corpus")
    if plan.patience is not None and held_out is None:
        raise SqueezeError(
            f"{title}: patience={plan.patience} looks at held-out windows and there are 0, expected at least 1;"
            " calibrate on a corpus of more windows than calibration.samples, or leave patience out"
        )
    if plan.windows < together.count:
        raise SqueezeError(
            f"{title}: the {plan.windows} windows of a step are shared by {together.count} processes, expected at least"
            f" one for each; ask for technique.steps.N.windows={together.count}, N the step's number from 0, or start"
            " fewer processes"
        )


def _rows(token_ids: torch.Tensor, step: int, count: int) -> torch.Tensor:
    """Return the rows of one step, (count, window)."""
    places = torch.arange(step * count, (step + 1) * count, device=token_ids.device)
    return token_ids[places % len(token_ids)]


def _parts(rows: torch.Tensor, plan: Plan, together: Processes) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield this process's rows, as many as are computed at once, with their share of all rows."""
    mine = together.share(rows)
    if len(mine):
        parts = mine.split(plan.at_once or plan.windows)  # type: ignore[no-untyped-call]
        yield from ((part, len(part) / len(rows)) for part in parts)


def _backward(loss: Loss, rows: torch.Tensor, plan: Plan, together: Processes) -> float:
    """Add the gradient of the mean loss over the rows to the parameters'; return this process's share of that mean."""
    mean = 0.0
    for part, share in _parts(rows, plan, together):
        objective = loss(part) * share
        objective.backward()  # type: ignore[no-untyped-call]
        mean += float(objective.detach())
    return mean


@torch.no_grad()
def _mean_loss(loss: Loss, rows: torch.Tensor, plan: Plan, together: Processes) -> float:
    """Return this process's share of the mean loss over the rows, without gradient."""
    return sum(float(loss(part)) * share for part, share in _parts(rows, plan, together))


def _finite(value: float, what: str, steps: int, plan: Plan) -> float:
    """Return a loss. Raises SqueezeError, with advice, for one that is not finite."""
    if not math.isfinite(value):
        raise SqueezeError(
            f"{what} is {value:g} in step {steps} of {plan.steps}, expected a finite one;"
            f" lower learning_rate, now {plan.learning_rate:g}"
        )
    return value
