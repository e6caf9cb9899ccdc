"""Train all weights of a classifier on labelled sentences, as its fine-tuning, its control and its distillation do."""

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
    order = shuffled(len(sentences.labels), plan.steps * plan.windows, seed).to(sentences.labels.device)
    rows_loss = partial(_of_rows, loss, sentences)
    with in_float32(model) as parameters:
        steps = train(parameters, rows_loss, order, plan, title=title, workplace=workplace)
    lengths = sentences.attention_mask.sum(dim=1)
    return {
        "training_tokens": int(lengths[order[: steps * plan.windows, 0]].sum()),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters),
    }


def _of_rows(loss: Loss, sentences: Labelled, rows: torch.Tensor) -> torch.Tensor:
    """Return the loss of the sentences with the numbers (n, 1)."""
    return loss(sentences.rows(rows[:, 0]))
