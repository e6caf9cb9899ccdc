"""What flows through torch code: a model, its tokenizer, and what has been claimed of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """A model under compression. ``claims`` are the techniques' words; detectors check them against the artifact."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    claims: dict[str, Any] = field(default_factory=dict)

    def claiming(self, **claims: Any) -> Subject:
        """The same subject with further claims, such as ``bits=4``; JSON-able values only."""
        return replace(self, claims={**self.claims, **claims})
