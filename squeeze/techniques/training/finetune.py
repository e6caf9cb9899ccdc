"""Train the uncompressed model, on the same tokens for as many steps, as the control of trained rows.

What a trained row gains over an untrained one may come from the text that it has seen rather than from the method. This
row has seen the same text and compresses nothing, so what it gains is the text's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from squeeze.layers.master_weights import mastered
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import next_token
from squeeze.techniques.training_loop import Plan, train


@dataclass(frozen=True)
class Finetune:
    """Train what ``qat`` trains, all linear layers of the blocks, to predict the calibration text itself.

    Under the loss of ``qat``, its distance from the uncompressed model, that model has nothing to learn: the loss is 0,
    its gradient too, and the control would be the baseline. Predicting the text is the stronger control: it takes from
    the tokens all that they offer, of which a teacher's row can at most take a part.

    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    """

    training_steps: int
    windows: int
    learning_rate: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the trained subject. Raises Unsupported for a model without a head, and for a plan that cannot be."""
        model, plan = subject.model, Plan(self.training_steps, self.windows, self.learning_rate)
        architecture.head(model)
        with mastered(model) as masters:
            train(
                [master.weight for master in masters.values()],
                partial(next_token, model),
                calibration.token_ids,
                plan,
                title="fine-tuning the control",
                workplace=calibration.workplace,
                held_out=calibration.held_out,
            )
            trainable = sum(master.weight.numel() for master in masters.values())
        return subject.without(*OF_CODES, "sparsity").claiming(  # all weights are trained, and stored as floats
            training_tokens=self.training_steps * self.windows * calibration.token_ids.shape[1],
            trainable_parameters=trainable,
        )
