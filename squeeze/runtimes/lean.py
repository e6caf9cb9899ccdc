"""Run a Llama, compressed or not, with as little around its products as torch allows: a lean decode path.

What transformers does anew for each token is done once: blocks are a flat list, queries, keys and values are one
product where their weights allow it, as are an MLP's gate and its way up, the angles of all positions are kept, and so
is the room for all keys and values. The products are those of the layers themselves, in the same kernels; text is
scored by the same path. The uncompressed model may use it as well as any other: it gains by it, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import live_bytes
from squeeze.models.subject import Subject
from squeeze.runtimes.contract import States
from squeeze.runtimes.generation import check_length, log_probability, synchronizer
from squeeze.runtimes.lean_model import LeanModel
from squeeze.runtimes.static_cache import KeysAndValues


@dataclass(frozen=True)
class Lean:
    """Run leanly. device: where tensors lie. threads: torch's, which the process is settled with."""

    device: str
    threads: int

    def load(self, folder: Path) -> LeanEngine:
        """Load an artifact. Raises IntegrityError for a damaged folder, Unsupported as ``engine`` does."""
        return self.engine(artifact.load(folder, self.device))

    def engine(self, subject: Subject) -> LeanEngine:
        """Return the engine of a subject that is ready to run on the device; its joined weights become views.

        Raises Unsupported for a model of another shape than Llama's, with a cache of its own, or sliced.
        """
        return LeanEngine(subject, LeanModel.of(subject), synchronizer(self.device))


@dataclass(frozen=True)
class LeanEngine:
    """Run a subject along the lean path. lean: the same model, laid out. synchronize: waits for the device."""

    subject: Subject
    lean: LeanModel
    synchronize: Callable[[], None]

    scored_as: ClassVar[str] = "itself"
    exact: ClassVar[bool] = True

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the subject's tokenizer."""
        return self.subject.tokenizer

    @property
    def bytes_held(self) -> int:
        """Count the bytes of the weights in memory, which the subject's model shows: the lean path has no others."""
        return live_bytes(self.subject.model)

    @property
    def states(self) -> States:
        """Return what computes hidden states where text is scored: the lean path, whatever model it is asked of."""
        return self._states

    def begin(self, positions: int) -> LeanGeneration:
        """Begin a generation. Raises Unsupported when the model has fewer positions."""
        check_length(self.subject.model, positions)
        return LeanGeneration(self.lean, positions, self.synchronize)

    def encode(self, token_ids: Tensor) -> Tensor:  # noqa: ARG002 - whatever they are
        """Raise Unsupported: the lean path predicts tokens, and encoders are of another shape."""
        raise Unsupported("the lean path predicts tokens, and encodes no texts; use runtime=eager")

    @torch.inference_mode()
    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token: (rows, tokens) int64 -> (rows, tokens, vocabulary) float32."""
        return self._logits(token_ids).float()

    @torch.inference_mode()
    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats."""
        return log_probability(self._logits(token_ids[:, :-1]), token_ids[:, 1:])

    def _logits(self, token_ids: Tensor) -> Tensor:
        check_length(self.subject.model, token_ids.shape[1])
        hidden = self.lean.read(token_ids)
        return self.lean.logits(hidden.flatten(0, 1)).view(*token_ids.shape, -1)

    @torch.inference_mode()
    def _states(
        self,
        model: nn.Module,  # noqa: ARG002 - the lean path has it already
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        return self.lean.norm(self.lean.read(input_ids, None, position_ids, attention_mask))


@dataclass
class LeanGeneration:
    """Run one greedy generation. tokens: those chosen so far, each (rows, 1) int64. read: tokens of each text so far.

    positions: the most tokens that it will read.
    """

    lean: LeanModel
    positions: int
    synchronize: Callable[[], None]
    tokens: list[Tensor] = field(default_factory=list)
    read: int = 0
    cache: KeysAndValues | None = None

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, (rows, tokens) int64, and return the first token of each row, (rows, 1).

        Raises IndexError for a prompt of more tokens than there are positions.
        """
        rows, self.read = prompt.shape
        self.cache = self.lean.cache(rows, self.positions)
        return self._chosen(self.lean.read(prompt, self.cache)[:, -1])

    @torch.inference_mode()
    def decode(self) -> Tensor:
        """Return the next token of each row, (rows, 1). Raises IndexError before any prefill, and beyond positions."""
        last = self.tokens[-1]
        assert self.cache is not None
        hidden = self.lean.step(last, self.cache, self.read)
        self.read += 1
        return self._chosen(hidden)

    def token_ids(self) -> list[list[int]]:
        """Return the tokens chosen so far, a list for each row."""
        return torch.cat(self.tokens, dim=1).tolist()

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes of the cache for each token of one row that was read: the room that is empty is held, too.

        Raises IndexError before any prefill.
        """
        rows = len(self.tokens[-1])
        assert self.cache is not None
        return self.cache.nbytes / (rows * self.read)

    def _chosen(self, hidden: Tensor) -> Tensor:
        """Return the likeliest next token, (rows, 1), after states (rows, hidden)."""
        token = self.lean.logits(hidden).argmax(-1, keepdim=True)
        self.synchronize()
        self.tokens.append(token)
        return token
