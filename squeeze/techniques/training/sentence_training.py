"""Train a classifier on labelled sentences: what its fine-tuning, its control, distillation and recovery share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.whole_model import in_float32
from squeeze.models import architecture
from squeeze.techniques.contract import Calibration, Labelled, Workplace
from squeeze.techniques.losses import Objective
from squeeze.techniques.training_loop import Plan, train

Loss = Callable[[Labelled], torch.Tensor]  # sentences -> scalar, their mean


def sentences_for(model: nn.Module, calibration: Calibration) -> Labelled:
    """Return the sentences that a classifier is to be trained on.

    Raises Unsupported for a model that is no classifier, for calibration text without classes, and for classes that
    the model does not have.
    """
    if not architecture.is_classifier(model):
        raise Unsupported(f"{type(model).__name__} is no classifier, expected one, such as model=minilm_sst2")
    labelled = calibration.labelled
    if labelled is None:
        raise Unsupported("the calibration text has no classes, expected labelled sentences; take calibration=snippets")
    classes, most = architecture.classes(model), int(labelled.labels.max())
    if most >= classes:
        raise Unsupported(f"the sentences have a class {most}, but {type(model).__name__} tells {classes} apart")
    return labelled


def logits(model: nn.Module, sentences: Labelled) -> torch.Tensor:
    """Return what a classifier makes of sentences: (sentences, classes) float32."""
    found: torch.Tensor = model(input_ids=sentences.input_ids, attention_mask=sentences.attention_mask).logits
    return found.float()


def cross_entropy(model: nn.Module, sentences: Labelled) -> torch.Tensor:
    """Return the mean negative log-likelihood of the sentences' classes, in nats."""
    return F.cross_entropy(logits(model, sentences), sentences.labels)


def class_loss(own: torch.Tensor, wanted: torch.Tensor, labels: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Return alpha T^2 D_T + (1 - alpha) CE in nats, the mean over sentences.

    own, wanted: logits of the student and of its teacher, (sentences, classes). labels: (sentences,) int64.
    """
    apart = objective.divergence(wanted.float(), own.float()) / len(labels)
    return (1 - objective.alpha) * F.cross_entropy(own.float(), labels) + objective.alpha * apart


def distilled_classes(model: nn.Module, teacher: nn.Module, objective: Objective, sentences: Labelled) -> torch.Tensor:
    """Return the ``class_loss`` of sentences that both read; no gradient reaches the teacher."""
    with torch.no_grad():
        wanted = logits(teacher, sentences)
    return class_loss(logits(model, sentences), wanted, sentences.labels, objective)


def shuffled(sentences: int, count: int, seed: int) -> torch.Tensor:
    """Return numbers of sentences in the order in which they are trained on: each once an epoch, (count, 1) int64."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(sentences, generator=generator) for _ in range(math.ceil(count / sentences))]
    return torch.cat(epochs)[:count, None]


def train_all(
    model: nn.Module,
    loss: Loss,
    sentences: Labelled,
    plan: Plan,
    *,
    seed: int,
    title: str,
    workplace: Workplace,
) -> dict[str, int]:
    """Minimise ``loss`` over the sentences, all parameters being trained, in place; return what may be claimed of it.

    The parameters are float32 meanwhile: steps are smaller than what bfloat16 can tell apart. plan: its ``windows`` are
    the sentences of a step. seed: of their order, another one in each epoch.
    Claimed are training_tokens, those of the sentences without padding, and trainable_parameters.
    """
    order = turns(sentences, plan.steps * plan.windows, seed)
    with in_float32(model) as parameters:
        steps = train(parameters, partial(of_rows, loss, sentences), order, plan, title=title, workplace=workplace)
    return {
        "training_tokens": tokens_of(sentences, order[: steps * plan.windows]),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters),
    }


def turns(sentences: Labelled, count: int, seed: int) -> torch.Tensor:
    """Return ``shuffled`` numbers of these sentences, (count, 1) int64 on their device."""
    return shuffled(len(sentences.labels), count, seed).to(sentences.labels.device)


def tokens_of(sentences: Labelled, rows: torch.Tensor) -> int:
    """Count the tokens of the sentences with the numbers (n, 1), padding left out."""
    return int(sentences.attention_mask[rows[:, 0]].sum())


def of_rows(loss: Loss, sentences: Labelled, rows: torch.Tensor) -> torch.Tensor:
    """Return the loss of the sentences with the numbers (n, 1)."""
    return loss(sentences.rows(rows[:, 0]))
