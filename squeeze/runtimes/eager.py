"""Run a model as transformers does, one operation after the other.

Its cache grows with the text, and its attention is what transformers picks, unless the runtime says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase, StaticCache

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.attended_cache import AttendedCache
from squeeze.layers.contract import live_bytes
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.runtimes.attention import use_attention
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
from squeeze.runtimes.speculative import SpeculativeEngine


@dataclass(frozen=True)
class Eager:
    """Run eagerly. device: where tensors lie. threads: torch's, which the process is settled with.

    attention: how it is computed (``use_attention``); None: as transformers picks. cache: "dynamic", which grows, or
    "static", which has room for all tokens of a generation from its beginning on.
    """

    device: str
    threads: int
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = None
    cache: Literal["dynamic", "static"] = "dynamic"

    @property
    def compiles(self) -> bool:
        """Tell whether torch compiles: flex_attention, for the mask that it meets."""
        return self.attention == "flex_attention"

    def load(self, folder: Path) -> EagerEngine | SpeculativeEngine:
        """Load an artifact. Raises IntegrityError for a damaged folder, Unsupported as ``engine`` does."""
        return self.engine(artifact.load(folder, self.device))

    def engine(self, subject: Subject) -> EagerEngine | SpeculativeEngine:
        """Return the engine of a subject that is ready to run on the device; it drafts where the subject has a draft.

        Raises Unsupported for attention that this machine or model does not have, or a cache that asks for its own; for
        a static cache of a subject that has a cache of its own; for either of a model that reads pictures, of which
        later blocks may hold fewer tokens by the attention of an earlier one; and for a draft with another cache than
        the plain one, which alone forgets what was guessed in vain.
        """
        if (self.attention is not None or self.cache == "static") and architecture.reads_pictures(subject.model):
            raise Unsupported("a model that reads pictures has attention and cache as they come; use runtime=eager")
        if self.attention is not None and isinstance(subject.cache, AttendedCache):
            raise Unsupported("its cache is shown attention, which it computes by sdpa; use runtime=eager")
        draft, synchronize = subject.draft, synchronizer(self.device)
        guessing = None if draft is None else draft.subject
        if self.attention is not None:
            for each in (subject,) if guessing is None else (subject, guessing):
                use_attention(each.model, self.attention, self.device)
        if self.cache == "static" and subject.cache is not None:
            raise Unsupported("this model has a cache of its own, which is not static; use runtime=eager")
        if draft is None:
            return EagerEngine(subject, synchronize, self.cache == "static")
        if self.cache == "static" or subject.cache is not None:
            kind = "static cache" if self.cache == "static" else type(subject.cache).__name__
            raise Unsupported(
                f"what is guessed in vain cannot be taken out of a {kind}; use runtime=eager and one of the two"
            )
        return SpeculativeEngine(subject, draft, EagerEngine(replace(subject, draft=None), synchronize), synchronize)


@dataclass(frozen=True)
class EagerEngine:
    """Run a subject as it is. synchronize: waits for the device. static: whether generations have a static cache."""

    subject: Subject
    synchronize: Callable[[], None]
    static: bool = False

    scored_as: ClassVar[str] = "itself"
    exact: ClassVar[bool] = True

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
        model = self.subject.model
        reads = architecture.reads_pictures(model)
        needed = positions + (len(prefix(model)) if reads else 0)
        check_length(model, needed)
        prefill: Forward = pictured(model) if reads else model
        return GreedyGeneration(prefill, model, self._cache(needed), self.synchronize, prompt_group(self.subject))

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
    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token, (rows, tokens) int64 -> (rows, tokens, vocabulary) float32.

        Through a cache of the kind that generations have. Raises Unsupported as ``begin`` does.
        """
        tokens = token_ids.shape[1]
        check_length(self.subject.model, tokens)
        return logits_of(self.subject, token_ids, self._cache(tokens)).float()

    @torch.inference_mode()
    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats."""
        return log_probability(self.logits(token_ids[:, :-1]), token_ids[:, 1:])

    def _cache(self, positions: int) -> Cache:
        if self.static:
            return StaticCache(self.subject.model.config, max_cache_len=positions)
        return cache_of(self.subject)
