"""Train a student, made small by the steps before, to predict what the uncompressed model predicts.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531); a student of every other
block is that of DistilBERT (Sanh et al. 2019, arXiv:1910.01108). docs/distillation.md has the equations of all options.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.layers import scopes
from squeeze.layers.scopes import Held, held
from squeeze.models import architecture
from squeeze.models.logits import logits_of
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, Workplace
from squeeze.techniques.losses import Objective, said, towards
from squeeze.techniques.training.tinybert import Matching, check_match, read
from squeeze.techniques.training.top_k import TopK, check_count, vocabulary_of
from squeeze.techniques.training_loop import Plan, checkpointed, train


@dataclass(frozen=True)
class Distillation:
    """Minimise alpha T^2 D_T(teacher, student) + (1 - alpha) CE, and what is matched, on the calibration text.

    The teacher is the uncompressed model, which reads in the same step. Where ``alpha`` is 0 and nothing is matched,
    there is none, and the student learns the text alone: the ablation.

    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    temperature, alpha, divergence, beta: T, alpha, D and its beta, as ``losses.Objective`` has them.
    match: what else is compared, layer by layer (``tinybert``): "none", "hidden" states, or "attention" scores, for
        which both models run in eager attention while they train. match_weight: by which it is added to the rest.
    top_k: how many of the teacher's likeliest tokens are kept for all students (``top_k``); None: it says all, anew.
    scope: what is trained: "linear", the linear layers of the blocks, or "all", embeddings, norms and head, too.
    at_once: windows whose activations are held together; None: all of a step.
    schedule, patience: of the learning rate, and with held-out windows, as ``training_loop.Plan`` has them.
    recompute: whether blocks keep their inputs alone for the backward pass, and run once more in it
        (``training_loop.checkpointed``).
    """

    training_steps: int
    windows: int
    learning_rate: float
    temperature: float = 1.0
    alpha: float = 1.0
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    beta: float = 0.5
    match: Literal["none", "hidden", "attention"] = "none"
    match_weight: float = 1.0
    top_k: int | None = None
    scope: Literal["linear", "all"] = "all"
    at_once: int | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    patience: int | None = None
    recompute: bool = False

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the trained student. Claims ``top_k_mass``, the share that is kept of the teacher's probability.

        ``trainable_parameters`` counts the projections, which are thrown away, too.
        Raises Unsupported for layers that are packed, a student of another vocabulary, a model without a head, and
        values of fields that mean nothing.
        """
        objective = Objective(self.divergence, self.temperature, self.alpha, self.beta)
        plan = Plan(self.training_steps, self.windows, self.learning_rate, self.at_once, self.schedule, self.patience)
        model = subject.model
        self._check(model)
        token_ids, numbers, held_out = _numbered(calibration, self.training_steps * self.windows)
        lesson = self._lesson(model, calibration, token_ids, objective)
        models = [each for each in (model, lesson.teacher) if each is not None]
        recomputed = architecture.blocks(model) if self.recompute else ()
        with held(model, self.scope) as student, lesson.matching.shown(*models), checkpointed(recomputed):
            trained = [*student.parameters, *lesson.matching.projections]
            steps = train(
                trained,
                partial(lesson.loss, student, token_ids),
                numbers,
                plan,
                title="distillation",
                workplace=calibration.workplace,
                held_out=held_out,
            )
        return subject.claiming(
            training_tokens=steps * self.windows * token_ids.shape[1],
            trainable_parameters=sum(parameter.numel() for parameter in trained),
            **({"top_k_mass": lesson.kept.mass} if lesson.kept is not None else {}),
        )

    def _check(self, model: nn.Module) -> None:
        """Refuse, before any work, what cannot be done. Raises Unsupported; see ``apply``."""
        check_match(self.match)
        if not self.match_weight >= 0:
            raise Unsupported(f"distillation: match_weight is {self.match_weight:g}, expected a number of 0 or more")
        architecture.head(model)
        scopes.check("distillation", self.scope, model)
        if self.top_k is not None:
            check_count(self.top_k, vocabulary_of(model))
        logits_of(model)

    def _lesson(self, model: nn.Module, calibration: Calibration, token_ids: Tensor, objective: Objective) -> Lesson:
        """Return what the student learns, and from whom. A teacher that nobody asks is not kept in memory."""
        matched = self.match != "none"
        if objective.alpha == 0 and not matched:
            return Lesson(objective, None, None, Matching("none"), self.match_weight)
        teacher = calibration.baseline()
        _check_vocabulary(model, teacher)
        matching = Matching.between(model, teacher, self.match, token_ids, calibration.seed)
        if self.top_k is None or objective.alpha == 0:
            return Lesson(objective, teacher, None, matching, self.match_weight)
        kept = TopK.of(teacher, token_ids, self.top_k, objective.temperature)
        _count_reading(kept, calibration.workplace)
        return Lesson(objective, teacher if matched else None, kept, matching, self.match_weight)


@dataclass(frozen=True)
class Lesson:
    """Hold what a student learns, and from whom.

    teacher: reads beside the student; None where nobody asks it. kept: what it has said of its likeliest tokens, which
    then is enough. match_weight: by which ``matching`` is added.
    """

    objective: Objective
    teacher: nn.Module | None
    kept: TopK | None
    matching: Matching
    match_weight: float

    def loss(self, student: Held, token_ids: Tensor, numbers: Tensor) -> Tensor:
        """Return the loss of the windows of these numbers, (n, 1) int64, among all, (windows, window) int64."""
        chosen, match = numbers[:, 0], self.matching.match
        windows = token_ids[chosen]
        target = None if self.kept is None else self.kept.said(chosen)
        of_teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                of_teacher = read(self.teacher, windows, match)
            target = target or said(self.teacher, of_teacher.last_hidden_state)
        with student.multiplying():
            outputs = read(student.model, windows, match)
            loss = towards(student.model, outputs.last_hidden_state, target, windows, self.objective)
        if match == "none":
            return loss
        return loss + self.match_weight * self.matching.loss(outputs, of_teacher)


def _numbered(calibration: Calibration, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return all windows that ``count`` places in a training take, and the numbers of those learned from and held out.

    A window's number, (n, 1) int64, says where what a teacher has said of it is kept.
    """
    learned, held_out = calibration.token_ids[:count], calibration.held_out
    token_ids = torch.cat([learned, held_out]) if held_out.numel() else learned
    numbers = torch.arange(len(token_ids), device=token_ids.device)[:, None]
    return token_ids, numbers[: len(learned)], numbers[len(learned) :]


def _count_reading(kept: TopK, workplace: Workplace) -> None:
    """Count the teacher's reading as training, whoever paid for it: without ``top_k`` it is a part of the steps."""
    workplace.seconds += kept.seconds
    workplace.reused_seconds += kept.reused_seconds
    workplace.joules = None  # nobody counts those of the reading, and a part of the energy is not the energy


def _check_vocabulary(student: nn.Module, teacher: nn.Module) -> None:
    own, wanted = vocabulary_of(student), vocabulary_of(teacher)
    if own != wanted:
        raise Unsupported(
            f"the student's vocabulary has {own:,} tokens, its teacher's {wanted:,}, expected as many: distil into a"
            " student that keeps the tokenizer"
        )
