"""Measure how far a student's next-token distributions are from its teacher's: forward, reverse, and all between.

Forward KL: Hinton, Vinyals, Dean 2015 (arXiv:1503.02531). Reverse KL, and the generalised Jensen-Shannon divergence,
whose ends both are: Agarwal et al. 2024, GKD (arXiv:2306.13649), eq. 1. All are of the next token alone, position by
position. MiniLLM (Gu et al. 2023, arXiv:2306.08543) minimises the reverse KL of whole texts that the student writes, by
policy gradients: what that gains by looking ahead is not here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

FORWARD, REVERSE = 0.0, 1.0  # the ends of beta


def generalised(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """Return D_beta(P || Q) in nats, summed over positions, of log P (teacher) and log Q (student), (n, classes) each.

    GKD, eq. 1: D_beta(P || Q) = beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q. It vanishes at both
    ends of beta, but D_beta / beta approaches KL(P || Q) as beta falls to 0, and D_beta / (1 - beta) approaches
    KL(Q || P) as it rises to 1; these stand there, as in the paper's experiments and in TRL.
    """
    if beta == FORWARD:
        return _kl(teacher, student)
    if beta == REVERSE:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(of: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
    """Return KL(of || against) of log-probabilities; torch has its arguments the other way round."""
    return F.kl_div(against, of, reduction="sum", log_target=True)
