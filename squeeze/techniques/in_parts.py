"""Apply a loss to a few positions at a time, with its gradients: what it computes of all never lies in memory together.

Logits are eighty times as large as the hidden states that they come from. Those of a few positions are computed, turned
into a loss and its gradients with respect to the hidden states and to the head, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

POSITIONS = 256  # that the loss is applied to at once

Loss = Callable[..., Tensor]  # (hidden of some positions, what else is given of these) -> its sum over them


def mean(loss: Loss, hidden: Tensor, others: Sequence[Tensor] = (), parameters: Sequence[nn.Parameter] = ()) -> Tensor:
    """Return the mean over positions of a loss that sums over those that it is called with.

    hidden: (positions, width). others: (positions, ...) each, given to the loss beside it. parameters: what else that
    the loss reads is trained. Gradients reach ``hidden`` and ``parameters``, and nothing else. Where none are wanted
    (``torch.no_grad``), none are computed.
    """
    if torch.is_grad_enabled():
        total: Tensor = _InParts.apply(loss, hidden, tuple(others), *parameters)  # type: ignore[no-untyped-call]
    else:
        total = torch.zeros((), device=hidden.device)
        for positions in _parts(hidden):
            total += loss(hidden[positions], *(other[positions] for other in others))
    return total / len(hidden)


def _parts(hidden: Tensor) -> Iterator[slice]:
    return (slice(start, start + POSITIONS) for start in range(0, len(hidden), POSITIONS))


class _InParts(torch.autograd.Function):
    """Sum a loss over all positions; its gradients are there when its value is."""

    @staticmethod
    def forward(
        ctx: Any, loss: Loss, hidden: Tensor, others: tuple[Tensor, ...], *parameters: nn.Parameter
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden)
        of_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        for positions in _parts(hidden):
            with torch.enable_grad():
                part = hidden[positions].detach().requires_grad_()
                value = loss(part, *(other[positions] for other in others))
            of_part, *found = torch.autograd.grad(value, (part, *parameters), allow_unused=True)
            of_hidden[positions] = of_part
            for known, more in zip(of_parameters, found, strict=True):
                if more is not None:
                    known += more
            total += value.detach()
        ctx.save_for_backward(of_hidden, *of_parameters)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_parameters = (gradients[0] * gradient for gradient in ctx.saved_tensors)
        return None, of_hidden, None, *of_parameters
