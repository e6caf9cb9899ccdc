"""An engine that torch cannot look into: what the contract asks, over a tiny model, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from squeeze.models.subject import Subject
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.generation import log_probability


@dataclass
class Opaque:
    """It has no ``subject``. twist: what becomes of its logits; counts how many rows each call read."""

    inner: Any
    twist: Callable[[Tensor], Tensor]
    exact: bool = True

    scored_as: ClassVar[str] = "itself"

    @property
    def tokenizer(self) -> Any:
        return self.inner.tokenizer

    @property
    def bytes_held(self) -> int:
        return int(self.inner.bytes_held)

    def begin(self, positions: int) -> Any:
        return self.inner.begin(positions)

    def logits(self, token_ids: Tensor) -> Tensor:
        assert token_ids.shape[0] == 1, "what an engine makes of padding is its own affair"
        return self.twist(self.inner.logits(token_ids))

    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        return log_probability(self.logits(token_ids[:, :-1]), token_ids[:, 1:])


def opaque(subject: Subject, twist: Callable[[Tensor], Tensor] = lambda logits: logits, *, exact: bool = True) -> Any:
    """Such an engine of a subject."""
    return Opaque(Eager("cpu", 1).engine(subject), twist, exact)
