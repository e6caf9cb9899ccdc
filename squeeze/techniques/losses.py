"""Compute the losses of training a language model, with the head applied to a few positions at a time.

Logits are eighty times as large as the hidden states that they come from. Those of a few positions are computed, turned
into a loss and its gradient with respect to the hidden states, and forgotten; so the head itself is not trained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.models.architecture import last_hidden_state
from squeeze.models.logits import Logits, logits_of

POSITIONS = 256  # that the head is applied to at once


def next_token(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood, in nats, of each token but the first from those before it.

    token_ids: (windows, window) int64, unpadded. Gradients flow into all but the head.
    """
    hidden = last_hidden_state(model, input_ids=token_ids, use_cache=False)[:, :-1].flatten(0, 1)
    return _mean(partial(_cross_entropy, logits_of(model)), hidden, token_ids[:, 1:].flatten())


def divergence(model: nn.Module, teacher: nn.Module, token_ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 KL(teacher || model) of the next-token distributions at temperature T, in nats, mean over positions.

    Distillation (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2): T^2 keeps gradients of one size whatever T
    is. token_ids: (windows, window) int64, unpadded; no gradient reaches the teacher.
    """
    with torch.no_grad():
        wanted = last_hidden_state(teacher, input_ids=token_ids, use_cache=False).flatten(0, 1)
    hidden = last_hidden_state(model, input_ids=token_ids, use_cache=False).flatten(0, 1)
    return _mean(partial(_kl, logits_of(model), logits_of(teacher), temperature), hidden, wanted)


def _cross_entropy(output: Logits, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output(hidden).float(), tokens, reduction="sum")


def _kl(
    output: Logits, teacher_output: Logits, temperature: float, hidden: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    own = (output(hidden).float() / temperature).log_softmax(-1)
    target = (teacher_output(wanted).float() / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(own, target, reduction="sum", log_target=True)


def _mean(loss: Callable[..., torch.Tensor], hidden: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of a loss that sums over those of ``hidden`` (positions, hidden) and ``other``."""
    mean: torch.Tensor = _InParts.apply(loss, hidden, other)  # type: ignore[no-untyped-call]
    return mean


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Callable[..., torch.Tensor], hidden: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), POSITIONS):
            positions = slice(start, start + POSITIONS)
            with torch.enable_grad():
                part = hidden[positions].detach().requires_grad_()
                value = loss(part, other[positions])
            (gradient[positions],) = torch.autograd.grad(value, part)
            total += value.detach()
        ctx.save_for_backward(gradient.div_(len(hidden)))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * gradients[0], None
