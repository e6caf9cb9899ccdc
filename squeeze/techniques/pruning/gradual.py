"""Prune by magnitude a little at a time while the weights that are left are trained; let some of the lost grow back.

Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression"
(arXiv:1710.01878), eq. 1: from s_i to s_f, fast where many weights are redundant and slowly in the end,

    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3,    t_0 <= t <= t_0 + n dt.

Regrowth is that of RigL (Evci, Gale, Menick, Castro, Elsen 2019, "Rigging the Lottery: Making All Tickets Winners",
arXiv:1911.11134, section 3): what is pruned beyond s_t is made up for by the zeros of the largest gradients, as many as
a share that falls along half a cosine. Both together are GraNet's way (Liu et al. 2021, arXiv:2106.10404).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import Objective
from squeeze.techniques.pruning.in_training import Masters, prune_in_training
from squeeze.techniques.pruning.selection import lowest
from squeeze.techniques.training_loop import AfterStep, Plan


@dataclass(frozen=True)
class Gradual:
    """Train and prune all linear layers of the blocks, towards the uncompressed model.

    sparsity: s_f, share of each layer's weights that are zero in the end, in [0, 1). s_i is what is zero before: of a
        dense model nothing, and zeros of earlier steps stay zeros, unless they grow back.
    every: dt, steps from one pruning to the next. until: share of the steps by which s_f is reached; in the others no
        weight is lost.
    regrow: share of the weights that are left which lose their place at the first pruning to as many zeros, in [0, 1);
        0 at the last. A weight that grows begins at zero, and takes the step that its gradient has just made: in RigL
        that step is left out. For that the zeros' gradients are computed; without regrowth they are not.
    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    temperature, alpha: of the loss (``losses.Objective``).
    """

    sparsity: float
    every: int
    until: float
    training_steps: int
    windows: int
    learning_rate: float
    regrow: float = 0.0
    temperature: float = 1.0
    alpha: float = 1.0

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for a schedule that cannot be, and as ``in_training.prune_in_training`` does.
        """
        plan = Plan(self.training_steps, self.windows, self.learning_rate)
        self._check()
        return prune_in_training(
            subject,
            calibration,
            plan,
            Objective(temperature=self.temperature, alpha=self.alpha),
            sparsity=self.sparsity,
            view=partial(Pruned, grows=self.regrow > 0),
            prepared=self._prepared,
            title=f"gradual pruning, {self.sparsity:g} zeros",
        )

    def _check(self) -> None:
        if self.every < 1:
            raise Unsupported(f"every={self.every} is not allowed, expected at least 1 step")
        if not 0 < self.until <= 1:
            raise Unsupported(f"until={self.until:g} is not allowed, expected more than 0, at most 1")
        if not 0 <= self.regrow < 1:
            raise Unsupported(f"regrow={self.regrow:g} is not allowed, expected 0 <= regrow < 1")

    def _prepared(self, masters: Masters) -> AfterStep:
        initial = {name: _share_of_zeros(master.weight) for name, master in masters.items()}
        return lambda steps: self._prune(masters, initial, steps)

    @torch.no_grad()
    def _prune(self, masters: Masters, initial: dict[str, float], steps: int) -> None:
        """Set to zero what was zero before the last step and, where its turn has come, what is pruned now."""
        last = max(1, round(self.until * self.training_steps))
        due = steps == last or (steps < last and steps % self.every == 0)
        for name, master in masters.items():
            kept: torch.Tensor = master.view.kept  # type: ignore[assignment]
            if due:
                share = cubic(steps / last, initial[name], self.sparsity)
                kept = chosen(master.weight, kept, master.weight.grad, share, decayed(steps / last, self.regrow))
            master.weight.mul_(kept)


class Pruned(nn.Module):
    """Hold a master in ``dtype``, of which what is zero is pruned. grows: whether gradients reach the zeros, too.

    ``kept`` is what was not zero in the last forward, (out_features, in_features): so the mask follows from the weight,
    and a training that was killed has it again.
    """

    def __init__(self, dtype: torch.dtype, grows: bool) -> None:
        super().__init__()
        self.dtype, self.grows = dtype, grows
        self.kept: torch.Tensor | None = None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the master as it is multiplied with: (out_features, in_features) float32 -> ``dtype``."""
        self.kept = weight.detach() != 0
        return (weight if self.grows else weight * self.kept).to(self.dtype)


def cubic(done: float, initial: float, final: float) -> float:
    """Return s_t (eq. 1), where ``done`` of the way, (t - t_0) / (n dt) from 0 to 1, is gone."""
    return final + (initial - final) * (1 - done) ** 3


def decayed(done: float, regrow: float) -> float:
    """Return the share that grows back, alpha / 2 (1 + cos(pi t / T_end)) (RigL, section 3)."""
    return regrow / 2 * (1 + math.cos(math.pi * done))


def chosen(
    weight: torch.Tensor, kept: torch.Tensor, gradient: torch.Tensor | None, sparsity: float, regrow: float
) -> torch.Tensor:
    """Return a mask of the weights that stay, or grow back: all but ``round(sparsity * n)`` of n.

    weight: after a step, (out_features, in_features). kept: what was not zero before it. gradient: of that step, of the
    same shape; None for none. Of those that stay, the share ``regrow`` that is lowest in magnitude makes place for as
    many of the others whose gradients have the largest magnitude (RigL, Algorithm 1); it may get its place back.
    """
    zeros = round(sparsity * weight.numel())
    growing = 0 if gradient is None else round(regrow * (weight.numel() - zeros))
    magnitude = (weight * kept).abs().flatten()
    pruned = lowest(magnitude, (zeros + growing) / weight.numel())
    if gradient is not None and growing:
        candidates = torch.where(pruned, gradient.abs().flatten(), -1)
        pruned[candidates.argsort(descending=True, stable=True)[:growing]] = False
    return ~pruned.view_as(weight)


def _share_of_zeros(weight: torch.Tensor) -> float:
    return 1 - int(weight.count_nonzero()) / weight.numel()
