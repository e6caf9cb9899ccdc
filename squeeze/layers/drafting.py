"""Guess the next tokens of texts: with a smaller model, or by looking up what followed the same tokens before.

What is guessed is verified by the model that it is guessed for (``squeeze.runtimes.speculative``): a wrong guess costs
time, and changes nothing of the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from squeeze.core.errors import SqueezeError
from squeeze.models.architecture import text_config


@dataclass(frozen=True)
class ByModel:
    """Guess what a smaller model of the same vocabulary chooses, greedily (Leviathan et al. 2023: M_q).

    drafted_tokens: gamma, the most tokens that are guessed at a time.
    """

    drafted_tokens: int

    has_model: ClassVar[bool] = True

    def begin(self, model: nn.Module | None) -> ModelGuesses:
        """Begin to guess for one generation. Raises SqueezeError where there is no model to guess with."""
        if model is None:
            raise SqueezeError("there is no draft model, expected one beside the model that it guesses for")
        return ModelGuesses(model, DynamicCache(config=text_config(model)))


@dataclass
class ModelGuesses:
    """Guess with a model. cache: its keys and values of the text so far, and of what it guessed last."""

    model: Any
    cache: Cache

    def read(self, prompt: Tensor) -> None:
        """Read a prompt, (rows, tokens) int64."""
        self._read(prompt)

    def guess(self, text: Tensor, most: int) -> Tensor:
        """Return the next tokens that are guessed, (rows, most) int64.

        text: (rows, tokens) int64, all that was read and chosen so far; it begins with the text of the last call.
        """
        held, known = self.cache.get_seq_length(), text.shape[1] - 1
        if held > known:  # what was guessed in vain is forgotten
            self.cache.crop(known - held)
        unread, guessed = text[:, min(held, known) :], []
        for _ in range(most):
            unread = self._read(unread)
            guessed.append(unread)
        return torch.cat([text[:, :0], *guessed], dim=1)

    def _read(self, token_ids: Tensor) -> Tensor:
        """Read tokens, (rows, n), behind those that were read; return the likeliest next one of each row, (rows, 1)."""
        outputs = self.model(input_ids=token_ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1:].argmax(-1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ByLookup:
    """Guess that what followed the newest tokens where they first stood in the text follows them again.

    Saxena 2023, "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding).

    drafted_tokens: the most tokens that are guessed at a time. longest: of the newest tokens, as many as are looked for
    first; then one fewer, down to one.
    """

    drafted_tokens: int
    longest: int

    has_model: ClassVar[bool] = False

    def begin(self, model: nn.Module | None) -> LookupGuesses:  # noqa: ARG002 - nothing is computed
        """Begin to guess for one generation."""
        return LookupGuesses(self.longest)


@dataclass
class LookupGuesses:
    """Guess by looking up. rows: what is known of each text."""

    longest: int
    rows: list[Runs] = field(default_factory=list)

    cache: ClassVar[None] = None

    def read(self, prompt: Tensor) -> None:
        """Read a prompt, (rows, tokens) int64."""
        self.rows = [Runs(self.longest) for _ in prompt]
        for runs, tokens in zip(self.rows, prompt.tolist(), strict=True):
            runs.keep(tokens)

    def guess(self, text: Tensor, most: int) -> Tensor:
        """Return the next tokens that are guessed, (rows, n) int64: as many as there are for every row, at most.

        text: (rows, tokens) int64, all that was read and chosen so far; it begins with the text of the last call.
        """
        found = [runs.following(tokens)[:most] for runs, tokens in zip(self.rows, text.tolist(), strict=True)]
        count = min(map(len, found))
        return text.new_tensor([tokens[:count] for tokens in found]).reshape(len(found), count)


@dataclass
class Runs:
    """Know where each run of up to ``longest`` tokens of a text first ended. ends: run -> how many tokens end with it.

    kept: tokens of the text whose runs are known.
    """

    longest: int
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    kept: int = 0

    def keep(self, tokens: list[int]) -> None:
        """Keep where the runs of a text end, its last token left out: nothing follows that yet."""
        for end in range(self.kept + 1, len(tokens)):
            for length in range(1, min(self.longest, end) + 1):
                self.ends.setdefault(tuple(tokens[end - length : end]), end)
        self.kept = max(self.kept, len(tokens) - 1)

    def following(self, tokens: list[int]) -> list[int]:
        """Return what followed the longest run of a text's newest tokens that stood in it before; else nothing."""
        self.keep(tokens)
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            if (end := self.ends.get(tuple(tokens[-length:]))) is not None:
                return tokens[end:]
        return []
