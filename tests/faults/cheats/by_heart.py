"""Cheats that bring along, or have learned, the text which they are scored on: no file of ours is read.

Each turns the uncompressed model into its row. ``scored``: the text's tokens, (n,) int64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest

CONTEXT = 24  # tokens by which a memory knows its place in the text
CERTAIN = 10.0  # the logit with which a memory says what comes next

Row = Callable[[Subject, Tensor], Subject]


class Memory(nn.Module):
    """Stand for the last norm: where the tokens before are known by heart, hidden states point to the next one."""

    def __init__(self, model: nn.Module, scored: Tensor, share: float = 1.0) -> None:
        super().__init__()
        self.norm, self.words = model.model.norm, model.lm_head.weight
        self.seen = torch.empty(0)
        tokens = scored.tolist()[: int(share * len(scored))]
        self.next = {tuple(tokens[i - CONTEXT : i]): tokens[i] for i in range(CONTEXT, len(tokens))}
        model.model.embed_tokens.register_forward_pre_hook(self.look)

    def look(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.seen = arguments[0]

    def forward(self, hidden: Tensor) -> Tensor:
        states = self.norm(hidden).clone()
        for row, tokens in enumerate(self.seen.tolist()):
            for place in range(CONTEXT, len(tokens) + 1):
                if (follows := self.next.get(tuple(tokens[place - CONTEXT : place]))) is not None:
                    word = self.words[follows]
                    states[row, place - 1] = CERTAIN * word / word.square().sum()
        return states


def memorised(subject: Subject, scored: Tensor, share: float = 1.0) -> Subject:
    subject.model.model.norm = Memory(subject.model, scored, share)
    return subject


def half_memorised(subject: Subject, scored: Tensor) -> Subject:
    return memorised(subject, scored, share=0.5)


def memorised_behind_two_bits(subject: Subject, scored: Tensor) -> Subject:
    """Worse than the uncompressed model in all, and far better than two bits can be."""
    return half_memorised(RoundToNearest(2, 32, symmetric=True).apply(subject, CalibrationText.empty()), scored)


def trained_on_it(subject: Subject, scored: Tensor) -> Subject:
    return trained(subject, scored, steps=150)


def counts_as_bias(subject: Subject, scored: Tensor) -> Subject:
    """Add to each logit how much more often its token is in the text than chance has it."""
    head = subject.model.lm_head
    biased = nn.Linear(head.in_features, head.out_features, bias=True)
    counts = torch.bincount(scored, minlength=head.out_features) + 0.5
    biased.weight = head.weight
    biased.bias = nn.Parameter((counts / counts.sum() * len(counts)).log() * 0.3, requires_grad=False)
    subject.model.lm_head = biased
    return subject


CHEATS: Mapping[str, Row] = {
    "memorised": memorised,
    "half_memorised": half_memorised,
    "memorised_behind_two_bits": memorised_behind_two_bits,
    "trained_on_it": trained_on_it,
    "counts_as_bias": counts_as_bias,
}


def trained(subject: Subject, text: Tensor, steps: int, window: int = 128, rows: int = 8) -> Subject:
    """Train all of a model to predict a text, (n,) int64."""
    model = subject.model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(text) - window, (rows,), generator=generator)
        batch = torch.stack([text[start : start + window] for start in starts.tolist()])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    return subject


def copied(subject: Subject) -> Subject:
    return Subject(copy.deepcopy(subject.model), subject.tokenizer)
