"""Train a compressed model to say what the uncompressed one says, so that it wins back what compression took.

The loss is distillation's (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2), with the baseline as teacher: of
tokens, or of a classifier's classes; no label is read where alpha is 1. What was compressed stays so. Zeros stay zeros,
as in the retraining of Han et al. 2015 (arXiv:1506.02626, section 3). Of weights that share values these are trained,
and who shares which stays (Han, Mao, Dally 2015, arXiv:1510.00149, section 3.3); of factorised ones, the factors. Codes
stay, and a low-rank change beside them (Hu et al. 2021, arXiv:2106.09685; on quantized bases Dettmers et al. 2023,
arXiv:2305.14314) makes up for what rounding took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import trainable
from squeeze.layers.contract import matrices
from squeeze.layers.lora import features
from squeeze.layers.trainable import Trainable
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, Labelled
from squeeze.techniques.losses import Objective, distilled
from squeeze.techniques.training.sentence_training import distilled_classes, of_rows, sentences_for, tokens_of, turns
from squeeze.techniques.training_loop import Plan, checkpointed, train

HOW = ("full", "lora")
DIVERGENCES = ("forward", "reverse", "jsd")


@dataclass(frozen=True)
class Recover:
    """Train the linear layers of the blocks after any compression; norms, biases, embeddings and head stay.

    how: "full", all weights of layers of floats, and the values of codebooks; or "lora", a change of rank ``rank``,
        scaled by ``lora_alpha`` / ``rank``, merged into layers of floats and kept beside packed ones.
    training_steps: of AdamW. windows: of calibration text in each, or sentences. learning_rate: its highest.
    divergence, temperature, alpha: of the loss (``losses.Objective``).
    schedule, patience: of the learning rate, and with held-out windows, as ``training_loop.Plan`` has them.
    recompute: whether blocks keep their inputs alone for the backward pass, and run once more in it
        (``training_loop.checkpointed``).
    """

    how: Literal["full", "lora"]
    training_steps: int
    windows: int
    learning_rate: float
    rank: int | None = None
    lora_alpha: int | None = None
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    temperature: float = 1.0
    alpha: float = 1.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    patience: int | None = None
    recompute: bool = False

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the recovered subject.

        Raises Unsupported for a model without a head that is no classifier, for a classifier without sentences, for
        layers that cannot be trained so (``trainable.check``), for a LoRA without a rank, or beyond a layer's, and for
        a plan that cannot be (``training_loop.Plan``).
        """
        model = subject.model
        plan = Plan(
            self.training_steps, self.windows, self.learning_rate, schedule=self.schedule, patience=self.patience
        )
        sentences = sentences_for(model, calibration) if architecture.is_classifier(model) else None
        if sentences is None:
            architecture.head(model)
        self.check(model)
        objective = Objective(kind=self.divergence, temperature=self.temperature, alpha=self.alpha)
        teacher = calibration.baseline()
        numbers = trainable.numbers(model)
        if sentences is None:
            lesson = _of_windows(model, teacher, calibration, objective)
        else:
            order = turns(sentences, self.training_steps * self.windows, calibration.seed)
            lesson = _of_sentences(model, teacher, sentences, order, objective)
        trained = trainable.stand_in(model, self._maker(architecture.dtype(model), calibration.seed))
        each_once = {each.module: each for each in trained.values()}.values()
        recomputed = architecture.blocks(model) if self.recompute else ()
        with trainable.gradients_pass(model), checkpointed(recomputed):
            steps = train(
                [parameter for each in each_once for parameter in each.parameters],
                lesson.loss,
                lesson.rows,
                plan,
                title=f"recovery, {self.how}",
                workplace=calibration.workplace,
                held_out=lesson.held_out,
            )
        trainable.finish(model, trained)
        model.eval().requires_grad_(False)
        count = sum(each.count for each in each_once)
        share = {"trainable_share": round(count / (numbers + count), 6)} if self.how == "lora" else {}
        return subject.claiming(
            training_tokens=lesson.tokens(steps * self.windows),
            trainable_parameters=count,
            **share,
        )

    def check(self, model: nn.Module) -> None:
        """Refuse, before any work, what cannot be done. Raises Unsupported; see ``apply``."""
        if self.how not in HOW:
            raise Unsupported(f"recover has no how: {self.how!r}; expected {' or '.join(HOW)}")
        if self.divergence not in DIVERGENCES:
            raise Unsupported(f"recover has no divergence {self.divergence!r}; expected {', '.join(DIVERGENCES)}")
        if self.how == "lora" and (self.rank is None or self.lora_alpha is None):
            raise Unsupported(f"how: lora needs both, found rank {self.rank} and lora_alpha {self.lora_alpha}")
        for name, layer in matrices(model):
            trainable.check(name, layer, weights=self.how == "full")
            if self.how == "lora" and (self.rank or 0) > (most := min(features(layer))):
                raise Unsupported(f"rank is {self.rank}, but {name} has one of {most} at the most; lower rank")

    def _maker(self, dtype: torch.dtype, seed: int) -> Callable[[nn.Module], Trainable]:
        if self.rank is None or self.lora_alpha is None or self.how == "full":
            return lambda layer: trainable.full(layer, dtype)
        rank, alpha, generator = self.rank, self.lora_alpha, torch.Generator().manual_seed(seed)
        return lambda layer: trainable.low_rank(layer, rank, alpha, dtype, generator)


@dataclass(frozen=True)
class Lesson:
    """Hold what is taught. loss: of rows (n, ...) int64, in nats, their mean. rows: those that are trained on.

    held_out: rows that are not. tokens: from how many rows were read to how many tokens these have.
    """

    loss: Callable[[torch.Tensor], torch.Tensor]
    rows: torch.Tensor
    held_out: torch.Tensor
    tokens: Callable[[int], int]


def _of_windows(model: nn.Module, teacher: nn.Module, calibration: Calibration, objective: Objective) -> Lesson:
    window = calibration.token_ids.shape[1]
    return Lesson(
        lambda token_ids: distilled(model, teacher, token_ids, objective),
        calibration.token_ids,
        calibration.held_out,
        lambda rows: rows * window,
    )


def _of_sentences(
    model: nn.Module, teacher: nn.Module, sentences: Labelled, order: torch.Tensor, objective: Objective
) -> Lesson:
    return Lesson(
        partial(of_rows, partial(distilled_classes, model, teacher, objective), sentences),
        order,
        order[:0],
        lambda rows: tokens_of(sentences, order[:rows]),
    )
