"""Match what lies between a student's embeddings and its predictions with the same of its teacher.

TinyBERT: Jiao et al. 2020 (arXiv:1909.10351), eq. 7-9, with layers mapped uniformly. The paper's BERT normalises the
outputs of its blocks; in models of today they are normalised where the next block reads them, and a few tokens have
hundreds of times the norm of all others. So each position's hidden state is taken at a root mean square of 1 here, or
the errors of these few would be all that counts. And the paper's scores are seen through their softmax here: of a
query's scores that takes away one constant, which has no effect, and which is taken away on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import base_model
from squeeze.models.settings import eager_attention

Match = Literal["none", "hidden", "attention"]
ASKED: dict[str, dict[str, bool]] = {  # of a forward, beside its last hidden states
    "none": {},
    "hidden": {"output_hidden_states": True},
    "attention": {"output_attentions": True},
}
LEAST = 1e-30  # attention probability that is told from none


def check_match(match: str) -> None:
    """Raise Unsupported for a matching that is none."""
    if match not in ASKED:
        raise Unsupported(f"no matching of {match!r}; expected one of {', '.join(ASKED)}")


def read(model: nn.Module, token_ids: Tensor, match: Match) -> Any:
    """Return a transformer's outputs for windows (windows, window) of tokens: what is matched is among them."""
    return base_model(model)(input_ids=token_ids, use_cache=False, **ASKED[match])


@dataclass(frozen=True)
class Matching:
    """Hold what is matched, and the projections W (student's width, teacher's width), which are trained beside it."""

    match: Match
    projections: tuple[nn.Parameter, ...] = ()

    @classmethod
    def between(cls, student: nn.Module, teacher: nn.Module, match: Match, token_ids: Tensor, seed: int) -> Matching:
        """Return the matching of two models, its projections the identity where widths are equal, else drawn.

        token_ids: (windows, window) int64, of which one token is read. seed: of what is drawn.
        Raises Unsupported for models that do not show what is to be matched, or whose numbers of heads differ.
        """
        check_match(match)
        if match == "none" or not token_ids.numel():
            return cls(match)
        with torch.no_grad(), cls(match).shown(student, teacher):
            own, wanted = (_matched(read(model, token_ids[:1, :1], match), match) for model in (student, teacher))
        for model, found in ((student, own), (teacher, wanted)):
            if not found or any(item is None for item in found):
                raise Unsupported(f"{type(model).__name__} does not show its {match} states; use match: none")
        if match == "attention":
            heads, of_teacher = own[0].shape[1], wanted[0].shape[1]
            if heads != of_teacher:
                raise Unsupported(f"the student has {heads} heads a block, its teacher {of_teacher}; use match: hidden")
            return cls(match)
        generator = torch.Generator().manual_seed(seed)
        pairs = zip(own, [wanted[number] for number in uniform(len(own), len(wanted))], strict=True)
        return cls(match, tuple(_projection(one.shape[-1], other, generator) for one, other in pairs))

    @contextmanager
    def shown(self, *models: nn.Module) -> Iterator[None]:
        """Let the models show what is matched within the body: attention maps exist in eager attention only."""
        if self.match != "attention":
            yield
            return
        with eager_attention(*models):
            yield

    def loss(self, outputs: Any, of_teacher: Any) -> Tensor:
        """Return the mean over mapped layers of the squared error; outputs: what ``read`` gave of both."""
        own, wanted = _matched(outputs, self.match), _matched(of_teacher, self.match)
        if self.match == "attention":
            return attention_loss(own, wanted)
        return hidden_loss(own, wanted, self.projections)


def uniform(student: int, teacher: int) -> list[int]:
    """Map each of a student's layers to one of its teacher's: n = g(m) = m N / M, rounded; 0 to 0, last to last.

    student, teacher: how many layers, M + 1 and N + 1, the embeddings being layer 0.
    """
    return [round(m * (teacher - 1) / (student - 1)) for m in range(student)]


def hidden_loss(own: Sequence[Tensor], wanted: Sequence[Tensor], projections: Sequence[Tensor]) -> Tensor:
    """Return the mean over the student's layers of MSE(H_S W, H_T) (eq. 8; of the embeddings, eq. 9).

    own, wanted: (windows, window, width) each, of the embeddings and after each block.
    """
    mapped = [wanted[number] for number in uniform(len(own), len(wanted))]
    errors = [
        F.mse_loss(_unit(state) @ projection, _unit(target.detach()))
        for state, target, projection in zip(own, mapped, projections, strict=True)
    ]
    return torch.stack(errors).mean()


def attention_loss(own: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean over the student's blocks, heads and visible pairs of (A_S - A_T)^2 of attention scores (eq. 7).

    own, wanted: (windows, heads, window, window) attention probabilities of each block. A score is their logarithm,
    less its mean over what the query sees.
    """
    # Blocks are counted from 1, so that the last is mapped to the last.
    mapped = [wanted[number - 1] for number in uniform(len(own) + 1, len(wanted) + 1)[1:]]
    return torch.stack([_scores_apart(*pair) for pair in zip(own, mapped, strict=True)]).mean()


def _scores_apart(own: Tensor, wanted: Tensor) -> Tensor:
    own, wanted = own.float(), wanted.detach().float()
    seen = (own > LEAST) & (wanted > LEAST)
    apart = torch.where(seen, own.clamp_min(LEAST).log() - wanted.clamp_min(LEAST).log(), 0)
    centre = apart.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(seen, apart - centre, 0).square().sum() / seen.sum().clamp_min(1)


def _unit(states: Tensor) -> Tensor:
    return F.rms_norm(states.float(), states.shape[-1:])


def _matched(outputs: Any, match: Match) -> tuple[Tensor, ...]:
    found = outputs.hidden_states if match == "hidden" else outputs.attentions
    return tuple(found or ())


def _projection(width: int, target: Tensor, generator: torch.Generator) -> nn.Parameter:
    """Return W (width, target's width): projected states of a random W are of the size of those before, too."""
    wide = target.shape[-1]
    drawn = torch.randn((width, wide), generator=generator) / math.sqrt(width)
    return nn.Parameter((torch.eye(width) if width == wide else drawn).to(target.device))
