"""Train under an L1 penalty that sets weights to zero, by proximal steps, and cut what is smallest in the end.

The penalty lambda |w| has no gradient at zero, where it is to lead; its proximal operator reaches zero in one step
(Daubechies, Defrise, De Mol 2004, "An iterative thresholding algorithm for linear inverse problems with a sparsity
constraint", arXiv:math/0307152; Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear
Inverse Problems", eq. 1.4). After each step of the optimizer, of learning rate lr:

    w <- sign(w) max(|w| - lr lambda, 0)

The penalty is taken apart from AdamW's step, as that takes weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101):
it is the same for all weights, whatever their gradients' size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.master_weights import Held
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import Objective
from squeeze.techniques.pruning.in_training import Masters, prune_in_training
from squeeze.techniques.training_loop import Plan


@dataclass(frozen=True)
class ProximalL1:
    """Train and prune all linear layers of the blocks, towards the uncompressed model.

    sparsity: share of each layer's weights that become zero, in [0, 1): those that are nearest to it after training.
    penalty: lambda, of |w| against the loss in nats. AdamW moves a weight by the learning rate at most, roughly, so
        from 1 on no gradient holds a weight against it. Where it makes more zeros than asked, they stay.
    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    temperature, alpha: of the loss (``losses.Objective``).
    """

    sparsity: float
    penalty: float
    training_steps: int
    windows: int
    learning_rate: float
    temperature: float = 1.0
    alpha: float = 1.0

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for a negative penalty, and as ``in_training.prune_in_training`` does.
        """
        plan = Plan(self.training_steps, self.windows, self.learning_rate)
        if not self.penalty >= 0:
            raise Unsupported(f"penalty is {self.penalty:g}, expected a number of at least 0")
        return prune_in_training(
            subject,
            calibration,
            plan,
            Objective(temperature=self.temperature, alpha=self.alpha),
            sparsity=self.sparsity,
            view=Held,
            prepared=lambda masters: partial(self._shrink, masters, plan.rate),
            title=f"training under L1, {self.sparsity:g} zeros",
        )

    def _shrink(self, masters: Masters, rate: Callable[[int], float], steps: int) -> None:
        """Take the proximal step that belongs to the last step of the optimizer."""
        for master in masters.values():
            shrink(master.weight, rate(steps - 1) * self.penalty)


@torch.no_grad()
def shrink(weight: torch.Tensor, by: float) -> None:
    """Move each weight by ``by`` towards zero, and no further, in place: the soft threshold."""
    weight.copy_(weight.sign() * (weight.abs() - by).clamp_(min=0))
