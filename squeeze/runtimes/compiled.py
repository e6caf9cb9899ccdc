"""Run a model's decode step, or an encoder's forward, as one graph that torch.compile has made.

Prefill stays eager, as in transformers' own generate: it is compute-bound and would need a graph per length. So does
the scoring of text, whose rows are of many lengths; what the decode step makes of the same tokens is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StaticCache

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import live_bytes
from squeeze.models.architecture import last_hidden_state, reads_pictures
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


@dataclass(frozen=True)
class Compiled:
    """Run compiled. device: where tensors lie. threads: torch's, which the process is settled with."""

    device: str
    threads: int

    compiles: ClassVar[bool] = True

    def load(self, folder: Path) -> CompiledEngine:
        """Load an artifact. Raises IntegrityError for a damaged folder, Unsupported as ``engine`` does."""
        return self.engine(artifact.load(folder, self.device))

    def engine(self, subject: Subject) -> CompiledEngine:
        """Return the engine of a subject that is ready to run on the device.

        Raises Unsupported for a subject with a cache of its own, and for a model that reads pictures, of which later
        blocks may hold fewer tokens: the shapes of a graph are fixed.
        """
        if subject.cache is not None:
            raise Unsupported("a cache of its own grows and shrinks, and cannot be compiled; use runtime=eager")
        if reads_pictures(subject.model):
            raise Unsupported("a model that reads pictures runs with runtime=eager alone, which shows it one")
        return CompiledEngine(subject, synchronizer(self.device))


@dataclass(frozen=True)
class CompiledEngine:
    """Run a subject, its decode step compiled at the first call, in minutes. synchronize: waits for the device."""

    subject: Subject
    synchronize: Callable[[], None]

    scored_as: ClassVar[str] = "eager"
    exact: ClassVar[bool] = True
    states: ClassVar[States] = staticmethod(last_hidden_state)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the subject's tokenizer."""
        return self.subject.tokenizer

    @property
    def bytes_held(self) -> int:
        """Count the bytes of the weights in memory."""
        return live_bytes(self.subject.model)

    def begin(self, positions: int) -> GreedyGeneration:
        """Begin a generation. Raises Unsupported when the model has fewer positions."""
        check_length(self.subject.model, positions)
        cache = self._static_cache(positions)
        return GreedyGeneration(self.subject.model, self._decode, cache, self.synchronize)

    @torch.inference_mode()
    def encode(self, token_ids: Tensor) -> Tensor:
        """Run an encoder, (rows, tokens) int64 -> (rows, tokens, hidden), or a classifier, -> (rows, classes).

        Raises Unsupported as ``begin`` does.
        """
        check_length(self.subject.model, token_ids.shape[1])
        found = encoding(self._encode(input_ids=token_ids))
        self.synchronize()
        return found

    @torch.inference_mode()
    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token, (rows, tokens) int64 -> (rows, tokens, vocabulary) float32.

        As in generation: a prefill of the first token, which makes the cache, and then the decode step, token by token.
        Raises Unsupported as ``begin`` does.
        """
        check_length(self.subject.model, token_ids.shape[1])
        forwards: Iterator[Forward] = chain([self.subject.model], repeat(self._decode))
        cache = self._static_cache(token_ids.shape[1])
        logits = [
            forward(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.float()
            for forward, token in zip(forwards, torch.split(token_ids, 1, dim=1), strict=False)
        ]
        return torch.cat(logits, dim=1)

    @torch.inference_mode()
    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats."""
        return log_probability(self.logits(token_ids[:, :-1]), token_ids[:, 1:])

    @cached_property
    def _decode(self) -> Forward:
        return torch.compile(self.subject.model.forward, fullgraph=True, dynamic=False)

    @cached_property
    def _encode(self) -> Forward:
        return torch.compile(self.subject.model.forward, dynamic=False)

    def _static_cache(self, positions: int) -> StaticCache:
        return StaticCache(self.subject.model.config, max_cache_len=positions)
