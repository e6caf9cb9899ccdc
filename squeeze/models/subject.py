"""Hold what flows through torch code: a model, its tokenizer, its cache, its draft, and what has been claimed of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from transformers import Cache, PreTrainedTokenizerBase

# Claims of steps that round weights to codes: untrue of weights that a later step stores as floats.
OF_CODES = ("bits", "low_bits", "high_bits", "high_layers", "group_size", "symmetric", "activation_bits")


class CacheFactory(Protocol):
    """Make empty caches of keys and values: a frozen dataclass in squeeze/layers/, whose fields an artifact stores."""

    @property
    def group(self) -> int:
        """Return how many tokens of a text may go through the cache at a time, from its beginning on.

        So that each sees what it would see had it come alone.
        """

    def __call__(self, config: Any) -> Cache:
        """Return the cache of one generation by a model of this configuration."""


class Guesses(Protocol):
    """Guess the next tokens of the texts of one generation."""

    @property
    def cache(self) -> Cache | None:
        """Return the keys and values that it keeps of the texts; None where it keeps none."""

    def read(self, prompt: torch.Tensor) -> None:
        """Read a prompt, (rows, tokens) int64, before anything is guessed."""

    def guess(self, text: torch.Tensor, most: int) -> torch.Tensor:
        """Return guesses of the next tokens, (rows, n) int64, n from 0 to ``most``.

        text: (rows, tokens) int64, all that was read and chosen so far; it begins with the text of the last call.
        """


class Drafting(Protocol):
    """Define a way to guess: a frozen dataclass in squeeze/layers/, whose fields an artifact stores."""

    @property
    def drafted_tokens(self) -> int:
        """Return the most tokens that are guessed at a time."""

    @property
    def has_model(self) -> bool:
        """Tell whether a model guesses, which lies beside the one that it guesses for."""

    def begin(self, model: torch.nn.Module | None) -> Guesses:
        """Begin to guess for one generation; model: the one that guesses, None where none does."""


@dataclass(frozen=True)
class Draft:
    """Hold what guesses the next tokens of a subject. subject: the model that does; None where none does."""

    how: Drafting
    subject: Subject | None = None


@dataclass(frozen=True)
class Subject:
    """Hold a model under compression. ``claims`` are the techniques' words; detectors check them against the artifact.

    cache: what it generates, and is scored, through; None: transformers' own, which keeps all as it is. draft: what
    guesses the tokens that it generates; None: it chooses one after the other.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    claims: dict[str, Any] = field(default_factory=dict)
    cache: CacheFactory | None = None
    draft: Draft | None = None

    def claiming(self, **claims: Any) -> Subject:
        """Return the same subject with further claims, such as ``bits=4``; JSON-able values only."""
        return replace(self, claims={**self.claims, **claims})

    def without(self, *names: str) -> Subject:
        """Return the same subject without the claims of these names, which what a step did has made untrue.

        Of names that are not claimed nothing is said.
        """
        return replace(self, claims={name: value for name, value in self.claims.items() if name not in names})
