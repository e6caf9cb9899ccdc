"""Run a model as transformers does, one operation after the other, its cache growing with the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from squeeze.artifacts import format as artifact
from squeeze.layers.contract import live_bytes
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.runtimes.contract import States
from squeeze.runtimes.generation import (
    Forward,
    GreedyGeneration,
    check_length,
    encoding,
    log_probability,
    synchronizer,
)
from squeeze.runtimes.kv_cache import cache_of, logits_of, prompt_group, states_of
from squeeze.runtimes.pictured import pictured, prefix


@dataclass(frozen=True)
class Eager:
    """Run eagerly. device: where tensors lie. threads: torch's, which the process is settled with."""

    device: str
    threads: int

    def load(self, folder: Path) -> EagerEngine:
        """Load an artifact. Raises IntegrityError for a folder that is none, or is damaged."""
        return self.engine(artifact.load(folder, self.device))

    def engine(self, subject: Subject) -> EagerEngine:
        """Return the engine of a subject that is ready to run on the device."""
        return EagerEngine(subject, synchronizer(self.device))


@dataclass(frozen=True)
class EagerEngine:
    """Run a subject as it is. synchronize: waits for the device."""

    subject: Subject
    synchronize: Callable[[], None]

    scored_as: ClassVar[str] = "itself"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the subject's tokenizer."""
        return self.subject.tokenizer

    @property
    def bytes_held(self) -> int:
        """Count the bytes of the weights in memory."""
        return live_bytes(self.subject.model)

    @property
    def states(self) -> States:
        """Return what computes hidden states where text is scored."""
        return states_of(self.subject)

    def begin(self, positions: int) -> GreedyGeneration:
        """Begin a generation. Raises Unsupported when the model has fewer positions.

        A model that reads pictures reads one before the prompt (``pictured``); its tokens come on top of ``positions``.
        """
        model, cache = self.subject.model, cache_of(self.subject)
        reads = architecture.reads_pictures(model)
        check_length(model, positions + (len(prefix(model)) if reads else 0))
        prefill: Forward = pictured(model) if reads else model
        return GreedyGeneration(prefill, model, cache, self.synchronize, prompt_group(self.subject))

    @torch.inference_mode()
    def encode(self, token_ids: Tensor) -> Tensor:
        """Run an encoder, (rows, tokens) int64 -> (rows, tokens, hidden), or a classifier, -> (rows, classes).

        Raises Unsupported as ``begin`` does.
        """
        check_length(self.subject.model, token_ids.shape[1])
        found = encoding(self.subject.model(input_ids=token_ids))
        self.synchronize()
        return found

    @torch.inference_mode()
    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats."""
        return log_probability(logits_of(self.subject, token_ids[:, :-1]), token_ids[:, 1:])
