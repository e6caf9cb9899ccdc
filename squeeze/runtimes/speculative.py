"""Generate by guessing the next tokens cheaply, and verifying all of them in one forward of the model.

Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via Speculative Decoding" (arXiv:2211.17192),
Algorithm 1 for greedy decoding. There p(x), of the model, and q(x), of what guesses, put all on one token (section
2.2), so that a guess x is accepted with probability min(1, p(x) / q(x)), which is 1 where the model itself chooses x
and 0 elsewhere; the first one that is refused is replaced by the model's own choice, drawn from max(0, p - q). So the
text is what the model alone would say, whatever is guessed. In floating point it is so but for rounding: a forward of
several tokens may round otherwise than one of each, and turn two tokens that are as likely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase

from squeeze.layers.contract import live_bytes
from squeeze.models.subject import Draft, Guesses, Subject
from squeeze.runtimes import kv_cache
from squeeze.runtimes.contract import States, Step, TorchEngine
from squeeze.runtimes.generation import Forward, check_length


@dataclass(frozen=True)
class SpeculativeEngine:
    """Run a subject that has a draft. undrafted: the engine of the same without. synchronize: waits for the device."""

    subject: Subject
    draft: Draft
    undrafted: TorchEngine
    synchronize: Callable[[], None]

    scored_as: ClassVar[str] = "itself"
    exact: ClassVar[bool] = True

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the subject's tokenizer."""
        return self.subject.tokenizer

    @property
    def bytes_held(self) -> int:
        """Count the bytes of the weights in memory, those of the draft among them."""
        drafting = 0 if self.draft.subject is None else live_bytes(self.draft.subject.model)
        return self.undrafted.bytes_held + drafting

    @property
    def states(self) -> States:
        """Return what computes hidden states where text is scored: the model itself, which has the last word."""
        return self.undrafted.states

    def begin(self, positions: int) -> SpeculativeGeneration:
        """Begin a generation. Raises Unsupported when the model, or its draft, has fewer positions."""
        model, drafting = self.subject.model, self.draft.subject
        for each in (model,) if drafting is None else (model, drafting.model):
            check_length(each, positions)
        guesses = self.draft.how.begin(None if drafting is None else drafting.model)
        cache = kv_cache.cache_of(self.subject)
        return SpeculativeGeneration(model, cache, guesses, self.draft.how.drafted_tokens, positions, self.synchronize)

    def encode(self, token_ids: Tensor) -> Tensor:
        """Run a model that sees texts as a whole, as it runs without a draft."""
        return self.undrafted.encode(token_ids)

    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token, (rows, tokens) int64 -> (rows, tokens, vocabulary) float32."""
        return self.undrafted.logits(token_ids)

    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats."""
        return self.undrafted.log_probabilities(token_ids)


@dataclass
class SpeculativeGeneration:
    """Run one greedy generation. tokens: those chosen so far, each (rows, n) int64. steps: what came of each decode.

    drafted_tokens: the most that are guessed at a time. positions: the most tokens of the generation, its prompt among
    them, beyond which nothing is guessed. text: (rows, tokens) int64, the prompt and all that was chosen.
    """

    forward: Forward
    cache: Cache
    guesses: Guesses
    drafted_tokens: int
    positions: int
    synchronize: Callable[[], None]
    tokens: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    text: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.int64))

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, (rows, tokens) int64, and return the first token of each row, (rows, 1).

        What guesses reads it, too: the time to the first token has all that a prompt costs.
        """
        self.text = prompt
        first = self._choices(prompt, 1)
        self.guesses.read(prompt)
        return self._chosen(first)

    @torch.inference_mode()
    def decode(self) -> Tensor:
        """Return the next tokens of each row, (rows, 1 to drafted_tokens + 1). Raises IndexError before any prefill."""
        last = self.tokens[-1][:, -1:]
        most = min(self.drafted_tokens, self.positions - self.text.shape[1] - 1)
        drafted = self.guesses.guess(self.text, max(most, 0))
        choices = self._choices(torch.cat([last, drafted], dim=1), 1 + drafted.shape[1])
        count = accepted(drafted, choices)
        if in_vain := drafted.shape[1] - count:
            self.cache.crop(-in_vain)
        self.steps.append(Step(drafted.shape[1], count))
        return self._chosen(choices[:, : count + 1])

    def token_ids(self) -> list[list[int]]:
        """Return the tokens chosen so far, a list for each row."""
        return torch.cat(self.tokens, dim=1).tolist()

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes that the model's cache keeps for each token of one row, and the draft's beside it."""
        caches = (self.cache, self.guesses.cache)
        return sum(kv_cache.bytes_per_token(cache) for cache in caches if cache is not None)

    def _choices(self, token_ids: Tensor, places: int) -> Tensor:
        """Read tokens behind those that were read; return the model's choices after the last ``places`` of them."""
        outputs = self.forward(input_ids=token_ids, past_key_values=self.cache, use_cache=True, logits_to_keep=places)
        return outputs.logits[:, -places:].argmax(-1)  # type: ignore[no-any-return]

    def _chosen(self, tokens: Tensor) -> Tensor:
        self.synchronize()
        self.tokens.append(tokens)
        self.text = torch.cat([self.text, tokens], dim=1)
        return tokens


def accepted(drafted: Tensor, choices: Tensor) -> int:
    """Return how many guesses stand: those before the first that is not the model's own choice (Algorithm 1).

    drafted: (rows, n) int64; choices: (rows, n + 1) int64, the model's, each at its guess's place and one behind. Rows
    go on together, so it is the fewest of any row: each guess that is left out is made and verified once more.
    """
    agree = (drafted == choices[:, :-1]).long().cumprod(dim=1)
    return int(agree.sum(dim=1).min())
