"""Compute the losses of training a language model: against the text, and against what a teacher says of it.

The head, the largest matrix of a small model, is applied a few positions at a time (``in_parts``), once for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import base_model, head, last_hidden_state
from squeeze.models.logits import Logits, logits_of
from squeeze.techniques import in_parts
from squeeze.techniques.divergences import FORWARD, REVERSE, generalised

Kind = Literal["forward", "reverse", "jsd"]
NOTHING = -100  # stands for the token after a window's last, which nobody knows


@dataclass(frozen=True)
class Objective:
    """Mix a divergence D from the teacher with the cross-entropy CE of the text: alpha T^2 D_T + (1 - alpha) CE.

    Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 2: both distributions are softened by the temperature T
    before they are compared, and T^2 keeps gradients of one size whatever T is.

    kind: of D: "forward" is KL(teacher || student), "reverse" is KL(student || teacher), "jsd" lies between, at beta
    (``divergences.generalised``). temperature: T. alpha: from 0, the text alone, to 1, the teacher alone.
    Raises Unsupported for values that mean nothing.
    """

    kind: Kind = "forward"
    temperature: float = 1.0
    alpha: float = 1.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise Unsupported(f"no divergence {self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        if not self.temperature > 0:
            raise Unsupported(f"temperature is {self.temperature:g}, expected a number above 0")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value <= 1:
                raise Unsupported(f"{name} is {value:g}, expected a number from 0 to 1")

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return T^2 D_T in nats, summed over positions, of logits (n, classes) float32."""
        wanted, own = ((logits / self.temperature).log_softmax(-1) for logits in (teacher, student))
        beta = {"forward": FORWARD, "reverse": REVERSE}.get(self.kind, self.beta)
        return self.temperature**2 * generalised(wanted, own, beta)


@dataclass(frozen=True)
class Target:
    """Hold what a teacher says of some positions.

    tensors: of it, (positions, ...) each. compared: (the student's logits, then ``tensors``, all of the same positions)
    -> the teacher's logits and the student's, (n, classes), of the classes that the teacher's are known of.
    """

    compared: Callable[..., tuple[Tensor, Tensor]]
    tensors: tuple[Tensor, ...]


def next_token(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Return the mean negative log-likelihood, in nats, of each token but the first from those before it.

    token_ids: (windows, window) int64, unpadded. Gradients reach all that is trained, the head too.
    """
    return _of_text(model, last_hidden_state(model, input_ids=token_ids, use_cache=False), token_ids)


def divergence(model: nn.Module, teacher: nn.Module, token_ids: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || model) of the next-token distributions at temperature T, in nats, mean over positions.

    token_ids: (windows, window) int64, unpadded; no gradient reaches the teacher.
    """
    return distilled(model, teacher, token_ids, Objective(temperature=temperature))


def distilled(model: nn.Module, teacher: nn.Module, token_ids: Tensor, objective: Objective) -> Tensor:
    """Return the objective's loss, in nats a position, of a model that reads what its teacher reads.

    token_ids: (windows, window) int64, unpadded. The divergence is the mean over all positions, the cross-entropy over
    those whose next token is known. No gradient reaches the teacher; where alpha is 0, it does not even read.
    """
    if objective.alpha == 0:
        return next_token(model, token_ids)
    with torch.no_grad():
        wanted = last_hidden_state(teacher, input_ids=token_ids, use_cache=False)
    hidden = last_hidden_state(model, input_ids=token_ids, use_cache=False)
    return distilled_from(model, teacher, hidden, wanted, token_ids, objective)


def distilled_from(
    model: nn.Module, teacher: nn.Module, hidden: Tensor, wanted: Tensor, token_ids: Tensor, objective: Objective
) -> Tensor:
    """Return what ``distilled`` returns where both have read; hidden, wanted: their last states, (windows, n, width).

    token_ids: (windows, n) int64, the tokens at these positions.
    """
    return towards(model, hidden, said(teacher, wanted), token_ids, objective)


def said(teacher: nn.Module, wanted: Tensor) -> Target:
    """Return what a teacher says where its last hidden states are ``wanted`` (windows, n, width): of every token."""
    return Target(partial(_of_all, logits_of(teacher)), (wanted.detach().flatten(0, 1),))


def towards(
    model: nn.Module, hidden: Tensor, target: Target | None, token_ids: Tensor, objective: Objective
) -> Tensor:
    """Return the objective's loss of last hidden states (windows, n, width) against what a teacher says there.

    token_ids: (windows, n) int64, the tokens at these positions. target: None is enough where alpha is 0.
    """
    if target is None or objective.alpha == 0:
        return _of_text(model, hidden, token_ids)
    following = F.pad(token_ids[:, 1:], (0, 1), value=NOTHING).flatten()
    share = len(following) / max(1, token_ids[:, 1:].numel())
    loss = partial(_mixed, logits_of(model), target.compared, objective, share)
    return in_parts.mean(loss, hidden.flatten(0, 1), (following, *target.tensors), _trained_beyond(model))


def _of_text(model: nn.Module, hidden: Tensor, token_ids: Tensor) -> Tensor:
    loss, following = partial(_cross_entropy, logits_of(model)), token_ids[:, 1:].flatten()
    return in_parts.mean(loss, hidden[:, :-1].flatten(0, 1), (following,), _trained_beyond(model))


def _cross_entropy(output: Logits, hidden: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(output(hidden).float(), following, reduction="sum")


def _mixed(
    output: Logits,
    compared: Callable[..., tuple[Tensor, Tensor]],
    objective: Objective,
    share: float,
    hidden: Tensor,
    following: Tensor,
    *tensors: Tensor,
) -> Tensor:
    """Return the sum of both terms. share: positions by those with a next token, of which alone CE is the mean."""
    logits = output(hidden).float()
    distance = objective.divergence(*compared(logits, *tensors))
    if objective.alpha == 1:
        return distance
    text = F.cross_entropy(logits, following, reduction="sum", ignore_index=NOTHING)
    return objective.alpha * distance + (1 - objective.alpha) * share * text


def _of_all(teacher_output: Logits, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return teacher_output(wanted).float(), logits


def _trained_beyond(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters that turn hidden states into logits: the head's, also where it is the embedding."""
    of_head = {id(parameter) for parameter in head(model).parameters()}
    inside = {id(parameter) for parameter in base_model(model).parameters()} - of_head
    return [each for each in model.parameters() if each.requires_grad and id(each) not in inside]
