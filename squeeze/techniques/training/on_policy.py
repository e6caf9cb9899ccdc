"""Let the student write, and the teacher say of every token what it would have said (GKD, on-policy distillation).

Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes"
(arXiv:2306.13649). A student that learns from other people's texts alone never meets the mistakes that it makes when it
writes; here, in a share of the steps, it does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from squeeze.core.errors import Unsupported
from squeeze.layers import scopes
from squeeze.layers.scopes import Held, held
from squeeze.models import architecture
from squeeze.models.architecture import last_hidden_state
from squeeze.models.logits import logits_of
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import Objective, distilled_from
from squeeze.techniques.training_loop import Plan, train

HELD_OUT = -1  # the number before a window that no step reads
EVERY: slice = slice(None)  # position of a text


@dataclass(frozen=True)
class OnPolicy:
    """Minimise the divergence from the uncompressed model on the student's own texts or the corpus's (algorithm 1).

    Of a text of the student's only what it has written counts, not the prompt; the gradient does not flow through the
    sampling. All texts are of one length: the end of a document that the student writes does not end its text, as it
    does not end a window of the corpus.

    own_share: of the steps in which the student writes (lambda in the paper), from 0, offline distillation, to 1.
    texts: of the student's in the place of a window, so that a step has as many tokens as any other: it is cut into as
    many pieces. prompt_share: of each piece that stays the corpus's, the beginning, for a prompt.
    divergence, temperature, beta: as for ``losses.Objective``; the tokens themselves are no label.
    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    scope: what is trained: "linear", the linear layers of the blocks, or "all", embeddings, norms and head, too.
    """

    own_share: float
    training_steps: int
    windows: int
    learning_rate: float
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    temperature: float = 1.0
    beta: float = 0.5
    texts: int = 4
    prompt_share: float = 0.25
    scope: Literal["linear", "all"] = "all"

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the trained subject. Claims ``written_tokens``, those that the student wrote.

        Raises Unsupported for values of fields that mean nothing, windows that cannot be parted into so many texts, and
        a model without a head or with packed layers.
        """
        objective = Objective(self.divergence, self.temperature, alpha=1.0, beta=self.beta)
        plan = Plan(self.training_steps, self.windows, self.learning_rate)
        model, token_ids, seed = subject.model, calibration.token_ids, calibration.seed
        self._check(model, token_ids.shape[1])
        teacher = calibration.baseline()
        numbers = torch.arange(self.training_steps * self.windows, device=token_ids.device)
        with held(model, self.scope) as student:
            steps = train(
                student.parameters,
                partial(self._loss, student, teacher, objective, seed),
                numbered(token_ids[numbers % len(token_ids)], numbers),
                plan,
                title="on-policy distillation",
                workplace=calibration.workplace,
                held_out=numbered(calibration.held_out, numbers.new_full((len(calibration.held_out),), HELD_OUT)),
            )
        text = token_ids.shape[1] // self.texts
        writing_steps = sum(self.writes(seed, step) for step in range(steps))
        return subject.claiming(
            training_tokens=steps * self.windows * token_ids.shape[1],
            trainable_parameters=sum(parameter.numel() for parameter in student.parameters),
            written_tokens=writing_steps * self.windows * self.texts * (text - self.prompt_tokens(text)),
        )

    def writes(self, seed: int, step: int) -> bool:
        """Tell whether the student writes the texts of a step, counted from 0: a coin that is thrown for it alone."""
        return bool(torch.rand((), generator=drawing(seed, step)) < self.own_share)

    def prompt_tokens(self, text: int) -> int:
        """Return how many of a text's tokens are the corpus's, one at least."""
        return max(1, round(self.prompt_share * text))

    def _loss(self, student: Held, teacher: nn.Module, objective: Objective, seed: int, rows: Tensor) -> Tensor:
        """Return the loss of some windows of one step, or of some held out.

        rows: (windows, 1 + window) int64, as ``numbered`` makes them. The texts in a window's place are drawn by its
        own number, so that they are the same whichever windows are computed together.
        """
        numbers: list[int] = rows[:, 0].tolist()
        token_ids, step, positions = rows[:, 1:], numbers[0] // self.windows, EVERY
        if numbers[0] != HELD_OUT and self.writes(seed, step):
            texts = token_ids.reshape(len(token_ids) * self.texts, -1)
            prompt = self.prompt_tokens(texts.shape[1])
            drawings = [drawing(seed, step, number) for number in numbers]
            with student.settled():
                token_ids = written(student.model, texts[:, :prompt], texts.shape[1], drawings)
            positions = slice(prompt - 1, -1)  # a token is predicted by the position before it
        return compared(student, teacher, token_ids, positions, objective)

    def _check(self, model: nn.Module, window: int) -> None:
        if not 0 <= self.own_share <= 1:
            raise Unsupported(f"on_policy: own_share is {self.own_share:g}, expected a number from 0 to 1")
        if not 0 <= self.prompt_share < 1:
            raise Unsupported(f"on_policy: prompt_share is {self.prompt_share:g}, expected a number from 0 to below 1")
        if self.texts < 1 or window % self.texts or window // self.texts <= self.prompt_tokens(window // self.texts):
            raise Unsupported(
                f"on_policy: a window of {window} tokens cannot be parted into {self.texts} texts of a prompt and what"
                " is written after it; expected a divisor of the window"
            )
        architecture.head(model)
        scopes.check("on_policy", self.scope, model)
        logits_of(model)


@torch.no_grad()
def written(model: nn.Module, prompts: Tensor, length: int, drawings: Sequence[torch.Generator]) -> Tensor:
    """Return (texts, length) int64: prompts (texts, prompt), and after them what the model says at temperature 1.

    drawings: by which the tokens are drawn, each those of as many texts as any other, in their order; on the processor,
    wherever the model is, so that the texts are the same everywhere but for rounding.
    """
    output, cache = logits_of(model), DynamicCache(config=model.config)
    token_ids = read = prompts
    while token_ids.shape[1] < length:
        hidden = last_hidden_state(model, input_ids=read, past_key_values=cache, use_cache=True)[:, -1]
        probabilities = output(hidden).float().softmax(-1).cpu()
        parts = zip(probabilities.chunk(len(drawings)), drawings, strict=True)
        drawn = torch.cat([torch.multinomial(part, 1, generator=generator) for part, generator in parts])
        read = drawn.to(prompts.device)
        token_ids = torch.cat([token_ids, read], dim=1)
    return token_ids


def compared(student: Held, teacher: nn.Module, token_ids: Tensor, positions: slice, objective: Objective) -> Tensor:
    """Return the objective's divergence from the teacher, in nats, mean over some positions of each text.

    token_ids: (texts, length) int64, unpadded.
    """
    with torch.no_grad():
        wanted = last_hidden_state(teacher, input_ids=token_ids, use_cache=False)[:, positions]
    with student.multiplying():
        hidden = last_hidden_state(student.model, input_ids=token_ids, use_cache=False)[:, positions]
        return distilled_from(student.model, teacher, hidden, wanted, token_ids[:, positions], objective)


def numbered(token_ids: Tensor, numbers: Tensor) -> Tensor:
    """Return (n, 1 + window) int64: windows (n, window), before each its number, of (n,).

    By its number alone a window is known: what is drawn in its place depends on nothing that was drawn before or beside
    it, so a killed training goes on as if it had not been, and several processes draw what one draws.
    """
    return torch.cat([numbers[:, None], token_ids], dim=1)


def drawing(*numbers: int) -> torch.Generator:
    """Return a generator that these numbers alone determine, unlike that of any others."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
