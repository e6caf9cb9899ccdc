"""Train a smaller classifier on what a larger one makes of sentences, and on their classes.

Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 2:

    loss = alpha T^2 KL(p_T || q_T) + (1 - alpha) CE(class, q)

p_T, q_T: the teacher's and the student's classes at temperature T; T^2 keeps gradients of one size whatever T is.
DistilBERT (Sanh et al. 2019, arXiv:1910.01108) and TinyBERT (Jiao et al. 2020, arXiv:1909.10351, eq. 10) end with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, Labelled
from squeeze.techniques.training.sentence_training import logits, sentences_for, train_all
from squeeze.techniques.training_loop import Plan


@dataclass(frozen=True)
class DistilClassifier:
    """Train all weights of what the steps before have left, the cell's uncompressed model being the teacher.

    training_steps: of AdamW. windows: sentences in each. learning_rate: its highest.
    temperature: T, above 0. alpha: weight of the teacher's word, from 0, the classes alone, to 1, the teacher alone.
    """

    training_steps: int
    windows: int
    learning_rate: float
    temperature: float = 2.0
    alpha: float = 0.5

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the trained subject.

        Raises Unsupported for a model that is no classifier, layers of a library's, text without classes, a
        temperature that is not above 0, and an alpha outside 0 to 1.
        """
        if not self.temperature > 0:
            raise Unsupported(f"temperature={self.temperature:g} is not allowed, expected a number above 0")
        if not 0 <= self.alpha <= 1:
            raise Unsupported(f"alpha={self.alpha:g} is not allowed, expected a number from 0 to 1")
        model = subject.model
        sentences = sentences_for(model, calibration)
        float_linears(model)
        teacher = calibration.baseline()
        claims = train_all(
            model,
            partial(distilled, model, teacher, temperature=self.temperature, alpha=self.alpha),
            sentences,
            Plan(self.training_steps, self.windows, self.learning_rate),
            seed=calibration.seed,
            title=f"distilling into {len(architecture.blocks(model))} blocks",
            workplace=calibration.workplace,
        )
        return subject.claiming(**claims)


def distilled(
    model: nn.Module, teacher: nn.Module, sentences: Labelled, temperature: float, alpha: float
) -> torch.Tensor:
    """Return the loss of the sentences, in nats, their mean; no gradient reaches the teacher."""
    own = logits(model, sentences)
    with torch.no_grad():
        wanted = logits(teacher, sentences)
    apart = F.kl_div(
        (own / temperature).log_softmax(-1),
        (wanted / temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * temperature**2 * apart + (1 - alpha) * F.cross_entropy(own, sentences.labels)
