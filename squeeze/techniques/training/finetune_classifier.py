"""Train the uncompressed classifier on the same sentences for as many steps, as the control of trained classifiers.

What ``finetune`` is to language models: whatever a trained row gains over an untrained one, this row may have gained by
reading the same sentences, with their classes, and compressing nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from squeeze.layers import scopes
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.training.sentence_training import cross_entropy, sentences_for, train_all
from squeeze.techniques.training_loop import Plan


@dataclass(frozen=True)
class FinetuneClassifier:
    """Train all weights to tell the classes of the calibration text's sentences.

    training_steps: of AdamW. windows: sentences in each. learning_rate: its highest.
    """

    training_steps: int
    windows: int
    learning_rate: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the trained subject.

        Raises Unsupported for a model that is no classifier, text without classes, and layers that are packed.
        """
        model = subject.model
        sentences = sentences_for(model, calibration)
        scopes.check_plain("finetune_classifier", model)
        claims = train_all(
            model,
            partial(cross_entropy, model),
            sentences,
            Plan(self.training_steps, self.windows, self.learning_rate),
            seed=calibration.seed,
            title="fine-tuning the control",
            workplace=calibration.workplace,
        )
        return subject.claiming(**claims)
