"""Tiny models that draft, and what they say without."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from squeeze.layers.drafting import ByLookup, ByModel
from squeeze.models.subject import Draft, Subject
from squeeze.runtimes.eager import Eager
from tests.tiny import tiny_subject

EAGER = Eager("cpu", 1)


def prompt(rows: int = 1, tokens: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (rows, tokens), generator=torch.Generator().manual_seed(1))


def lively(name: str = "llama", dtype: str = "float32", seed: int = 0) -> Subject:
    """A tiny model that does not repeat one token: random biases would outweigh what the tokens say."""
    subject = tiny_subject(name, dtype, seed)
    for parameter_name, parameter in subject.model.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.data.zero_()
    return subject


def drafted_by(subject: Subject, other: Subject, tokens: int = 4) -> Subject:
    return replace(subject, draft=Draft(ByModel(tokens), other))


def looked_up(subject: Subject, tokens: int = 4, longest: int = 2) -> Subject:
    return replace(subject, draft=Draft(ByLookup(tokens, longest)))


def said(engine: Any, text: torch.Tensor, tokens: int) -> Any:
    """The generation of so many tokens behind a prompt."""
    generation = engine.begin(text.shape[1] + tokens)
    chosen = generation.prefill(text).shape[1]
    while chosen < tokens:
        chosen += generation.decode().shape[1]
    return generation


@dataclass(frozen=True)
class Scripted:
    """A way to guess that knows the text, and is right as often as it is told: ``right`` of each step's guesses."""

    text: tuple[tuple[int, ...], ...]
    right: tuple[int, ...]
    drafted_tokens: int = 4

    has_model: ClassVar[bool] = False

    def begin(self, model: Any) -> ScriptedGuesses:  # noqa: ARG002 - none guesses
        return ScriptedGuesses(self)


@dataclass
class ScriptedGuesses:
    script: Scripted
    asked: list[int] = field(default_factory=list)

    cache: ClassVar[None] = None

    def read(self, prompt: torch.Tensor) -> None:
        self.prompt = prompt

    def guess(self, text: torch.Tensor, most: int) -> torch.Tensor:
        """Guess the text's own next tokens, and behind those that are to be right others."""
        self.asked.append(most)
        at = text.shape[1] - self.prompt.shape[1]
        true = torch.tensor([row[at : at + most] for row in self.script.text])
        wrong = self.script.right[len(self.asked) - 1]
        true[:, wrong:] = (true[:, wrong:] + 1) % 256
        return true
