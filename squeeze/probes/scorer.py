"""Score rows of tokens with any engine: by the hidden states that torch sees of its model, else by the logits it gives.

An engine that torch cannot look into reads one row at a time, without padding, masks or given positions: what it makes
of these is its own affair. It gives the logits of every token, of which those are kept that predict a continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from squeeze.models.architecture import last_hidden_state
from squeeze.models.logits import Logits, logits_of
from squeeze.probes.scoring import Predicted, Row, predict, scored
from squeeze.runtimes.contract import Engine, States, shows_model


@dataclass(frozen=True)
class Scorer:
    """Hold how text is scored.

    predict: rows -> what predicts their continuations. logits: that, ``Predicted.hidden`` or some of its rows ->
    (n, vocabulary); it is the identity where logits predict.
    """

    predict: Callable[[Sequence[Row]], Predicted]
    logits: Logits

    def log_probabilities(self, predicted: Predicted) -> tuple[Tensor, Tensor]:
        """Return log-probabilities in nats, (T,) float32, and whether no token was likelier, (T,) bool; on the CPU."""
        return scored(self.logits, predicted)


def of_model(model: nn.Module, states: States = last_hidden_state) -> Scorer:
    """Return the scorer of a model. states: how its hidden states come about, as in ``scoring.predict``."""
    return Scorer(lambda rows: predict(model, rows, states), lambda hidden: logits_of(model)(hidden))


def of_engine(engine: Engine) -> Scorer:
    """Return the scorer of an engine: of its model where torch sees one, else of its logits.

    Such a one takes rows of one continuation only (``scoring.one_by_one``).
    """
    if shows_model(engine):
        return of_model(engine.subject.model, engine.states)
    return Scorer(partial(_predict, engine), lambda logits: logits)


@torch.inference_mode()
def _predict(engine: Engine, rows: Sequence[Row]) -> Predicted:
    parts = [_of_row(engine, row) for row in rows]
    return Predicted(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _of_row(engine: Engine, row: Row) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (T, vocabulary), the tokens that they predict, (T,) int64, and their owner, (T,) int64."""
    [tokens], [owner] = row.continuations, row.owners
    logits = engine.logits(torch.tensor([[*row.context, *tokens[:-1]]]))[0, len(row.context) - 1 :]
    return logits.float().cpu(), torch.tensor(tokens), torch.full((len(tokens),), owner)
