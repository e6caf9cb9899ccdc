"""Train a smaller classifier on what a larger one makes of sentences, and on their classes.

Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 2:

    loss = alpha T^2 KL(p_T || q_T) + (1 - alpha) CE(class, q)

p_T, q_T: the teacher's and the student's classes at temperature T. DistilBERT (Sanh et al. 2019, arXiv:1910.01108) and
TinyBERT (Jiao et al. 2020, arXiv:1909.10351, eq. 10) end with it; TinyBERT matches what lies between, too (eq. 8, 9).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers import scopes
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, Labelled
from squeeze.techniques.losses import Objective
from squeeze.techniques.training.sentence_training import class_loss, sentences_for, train_all
from squeeze.techniques.training.tinybert import hidden_loss
from squeeze.techniques.training_loop import Plan

Match = Literal["none", "hidden"]


@dataclass(frozen=True)
class DistilClassifier:
    """Train all weights of what the steps before have left, the cell's uncompressed model being the teacher.

    Where ``alpha`` is 0 and nothing is matched there is none, and the student learns the classes alone: the ablation.

    training_steps: of AdamW. windows: sentences in each. learning_rate: its highest.
    temperature, alpha, divergence: T, alpha, and what stands for KL, as ``losses.Objective`` has them.
    match: what else is compared: nothing, or "hidden" states of embeddings and blocks (``tinybert.hidden_loss``).
    match_weight: by which that is added.
    """

    training_steps: int
    windows: int
    learning_rate: float
    temperature: float = 1.0
    alpha: float = 1.0
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    match: Literal["none", "hidden"] = "none"
    match_weight: float = 1.0

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the trained subject.

        Raises Unsupported for a model that is no classifier, text without classes, layers that are packed, fields
        without meaning, and hidden states of another width than the teacher's.
        """
        objective = Objective(self.divergence, self.temperature, self.alpha)
        if self.match not in get_args(Match):
            raise Unsupported(f"no matching of {self.match!r}; expected one of {', '.join(get_args(Match))}")
        model, matched = subject.model, self.match == "hidden"
        sentences = sentences_for(model, calibration)
        scopes.check_plain("distil_classifier", model)
        teacher = calibration.baseline() if self.alpha > 0 or matched else None
        if matched and teacher is not None:
            _check_widths(model, teacher)
        claims = train_all(
            model,
            partial(taught, model, teacher, objective, self.match_weight if matched else 0.0),
            sentences,
            Plan(self.training_steps, self.windows, self.learning_rate),
            seed=calibration.seed,
            title=f"distilling into {len(architecture.blocks(model))} blocks",
            workplace=calibration.workplace,
        )
        return subject.claiming(**claims)


def taught(
    model: nn.Module, teacher: nn.Module | None, objective: Objective, match_weight: float, sentences: Labelled
) -> torch.Tensor:
    """Return the loss of sentences, in nats, their mean; no gradient reaches the teacher.

    match_weight: of the error of hidden states; 0: they are not compared.
    """
    own = _read(model, sentences, states=match_weight > 0)
    if teacher is None:
        return (1 - objective.alpha) * F.cross_entropy(own.logits.float(), sentences.labels)
    with torch.no_grad():
        wanted = _read(teacher, sentences, states=match_weight > 0)
    loss = class_loss(own.logits, wanted.logits, sentences.labels, objective)
    if match_weight > 0:
        loss = loss + match_weight * _states_apart(own, wanted, sentences.attention_mask.bool())
    return loss


def _read(model: nn.Module, sentences: Labelled, *, states: bool) -> Any:
    return model(input_ids=sentences.input_ids, attention_mask=sentences.attention_mask, output_hidden_states=states)


def _states_apart(own: Any, wanted: Any, is_token: torch.Tensor) -> torch.Tensor:
    """Return the error of the hidden states of all tokens, padding left out; is_token: (sentences, tokens)."""
    states, targets = ([state[is_token] for state in outputs.hidden_states] for outputs in (own, wanted))
    same = torch.eye(own.hidden_states[0].shape[-1], device=is_token.device)
    return hidden_loss(states, targets, [same] * len(states))


def _check_widths(model: nn.Module, teacher: nn.Module) -> None:
    own, wanted = (each.config.hidden_size for each in (model, teacher))  # type: ignore[union-attr]
    if own != wanted:
        raise Unsupported(f"hidden states are {own} wide, the teacher's {wanted}; use match: none")
