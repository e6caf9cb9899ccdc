"""Train a student and a model of its teacher's size at the same time, each with the other's predictions as targets.

Deep mutual learning: Zhang et al. 2018 (arXiv:1706.00384). No model is the teacher for good: the large one, too, learns
the text, and what it says while it learns is what the small one is told, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

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

BOTH = Objective(kind="forward", temperature=1.0, alpha=0.5)  # half of: divergence from the peer + cross-entropy


@dataclass(frozen=True)
class Mutual:
    """Train the student and its peer, each on the text and on the other's predictions; keep the student alone.

    The student is what earlier steps have made smaller, its peer the uncompressed model. The paper's networks take
    turns, each told what the other says after its last step; here both take their steps at once, told what the other
    said before it: a difference of one step. The two gradients are shortened together, where they are too long.

    What it costs beside distillation: the peer's parameters in float32, their gradients and moments, 16 bytes each, and
    its backward, so about three times the arithmetic in the peer. ``trainable_parameters`` counts the peer's too.

    training_steps: of AdamW. windows: of calibration text in each, read by both. learning_rate: its highest.
    scope: what is trained of both: "linear", linear layers of the blocks, or "all", embeddings, norms and head, too.
    """

    training_steps: int
    windows: int
    learning_rate: float
    scope: Literal["linear", "all"] = "all"

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the trained student.

        Raises Unsupported for a schedule that is none, for a model without a head or with packed layers, and where the
        student is the uncompressed model itself: two that are the same at the start say the same for ever.
        """
        plan = Plan(self.training_steps, self.windows, self.learning_rate)
        model = subject.model
        architecture.head(model)
        scopes.check("mutual", self.scope, model)
        logits_of(model)
        peer = calibration.baseline()
        if _same(model, peer):
            raise Unsupported(
                "mutual: the student is the uncompressed model, expected a smaller one; put a step before that leaves"
                " something out"
            )
        with held(model, self.scope) as student, held(peer, self.scope) as other:
            parameters = [*student.parameters, *other.parameters]
            steps = train(
                parameters,
                partial(_loss, student, other),
                calibration.token_ids,
                plan,
                title="mutual learning",
                workplace=calibration.workplace,
                held_out=calibration.held_out,
            )
        return subject.claiming(
            training_tokens=steps * self.windows * calibration.token_ids.shape[1],
            trainable_parameters=sum(parameter.numel() for parameter in parameters),
        )


def joint(first: nn.Module, second: nn.Module, token_ids: Tensor) -> Tensor:
    """Return L_1 + L_2, in nats a token; L_1 = CE_1 + KL(p_2 || p_1), L_2 = CE_2 + KL(p_1 || p_2) (eq. 5 to 8).

    token_ids: (windows, window) int64, unpadded. Each term takes what the other model says as given: its gradient
    reaches one model alone.
    """
    one, two = (last_hidden_state(model, input_ids=token_ids, use_cache=False) for model in (first, second))
    of_first = distilled_from(first, second, one, two.detach(), token_ids, BOTH)
    of_second = distilled_from(second, first, two, one.detach(), token_ids, BOTH)
    return 2 * (of_first + of_second)


def _loss(student: Held, peer: Held, token_ids: Tensor) -> Tensor:
    with student.multiplying():  # both are of one dtype
        return joint(student.model, peer.model, token_ids)


def _same(model: nn.Module, other: nn.Module) -> bool:
    own, others = dict(model.named_parameters()), dict(other.named_parameters())
    return own.keys() == others.keys() and all(own[name].equal(others[name]) for name in own)
