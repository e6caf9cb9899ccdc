"""Run an artifact in llama.cpp, on the CPU: its weights exported to GGUF, read, and computed with, by that library.

It lies in an environment of its own, beside the packages of this one; see ``environments``. It is built from source
there, as ``llama_cpp_build`` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.cached import exported
from squeeze.artifacts.exports.gguf import FILE
from squeeze.core.errors import Unsupported
from squeeze.runtimes.generation import log_probability
from squeeze.runtimes.llama_context import Context, Weights, read

SCORED_AT_ONCE = 512  # tokens, whose logits llama.cpp holds: 100 MB for a vocabulary of 49,152
WRITTEN_AS_FLOATS = frozenset({"sparse.SparseLinear"})  # layers of artifacts whose weights are floats in a GGUF


@dataclass(frozen=True)
class LlamaCpp:
    """Run in llama.cpp. device: ``cpu``. threads: that it computes with, of a prompt and of a token alike."""

    device: str
    threads: int

    environment: ClassVar[str] = "llama_cpp"
    only_on: ClassVar[str] = "cpu"

    def load(self, folder: Path) -> LlamaCppEngine:
        """Load an artifact; its GGUF is made the first time.

        Raises Unsupported for another device, where the library is not installed, and for what ``to_gguf`` refuses;
        IntegrityError for a damaged folder.
        """
        if self.device != "cpu":
            raise Unsupported(f"llama.cpp is built for the processor alone here, not for {self.device}; use device=cpu")
        kinds = {spec["_target_"] for spec in artifact.describe(folder)["layers"].values()}
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        weights = read(exported(folder, "gguf") / FILE)
        return LlamaCppEngine(weights, tokenizer, self.threads, exact=kinds <= WRITTEN_AS_FLOATS)


@dataclass
class LlamaCppEngine:
    """Run a GGUF.

    exact: whether its weights are floats; what is multiplied with codes llama.cpp rounds to 8 bits, block by block.
    rows: texts that the last generation read side by side. The next one's memory is laid out for as many, before its
    prompt comes, as a server's is.
    """

    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    threads: int
    exact: bool
    rows: int = 1

    scored_as: ClassVar[str] = "itself"

    @property
    def bytes_held(self) -> int:
        """Count the bytes of the weights in memory, those among them that llama.cpp has laid out for its kernels."""
        return self.weights.bytes_held

    def begin(self, positions: int) -> LlamaCppGeneration:
        """Begin a generation. Raises Unsupported when the model has fewer positions."""
        self._check_length(positions)
        return LlamaCppGeneration(self, positions, self.context(self.rows, positions))

    def context(self, rows: int, positions: int) -> Context:
        """Return a fresh cache for so many texts of so many tokens at most."""
        self.rows = rows
        return Context.of(self.weights, rows, positions, self.threads)

    def encode(self, token_ids: Tensor) -> Tensor:
        """Raise Unsupported: only models that predict tokens are exported to llama.cpp."""
        raise Unsupported(f"llama.cpp runs no encoder here ({len(token_ids)} texts given); use runtime=eager")

    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token, (rows, tokens) int64 -> (rows, tokens, vocabulary) float32.

        Raises Unsupported as ``begin`` does.
        """
        rows, tokens = token_ids.shape
        self._check_length(tokens)
        context = Context.of(self.weights, rows, tokens, self.threads, SCORED_AT_ONCE)
        return torch.from_numpy(context.decode(token_ids.numpy(), 0, every=True))

    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats.

        One text after the other, so that no more than one text's logits are held.
        """
        found = [log_probability(self.logits(row[:, :-1]), row[:, 1:]) for row in torch.split(token_ids, 1)]
        return torch.cat(found)

    def _check_length(self, positions: int) -> None:
        if self.weights.positions < positions:
            raise Unsupported(
                f"the model has {self.weights.positions} positions, the protocol's prompt and decoded tokens need"
                f" {positions}; lower protocol.latency.prompt_tokens or decode_tokens"
            )


@dataclass
class LlamaCppGeneration:
    """Run one greedy generation. read: tokens of each row so far. tokens: those chosen so far, each (rows, 1) int64."""

    engine: LlamaCppEngine
    positions: int
    context: Context
    read: int = 0
    tokens: list[Tensor] = field(default_factory=list)

    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, (rows, tokens) int64, and return the first token of each row, (rows, 1)."""
        if self.context.rows != len(prompt):
            self.context = self.engine.context(len(prompt), self.positions)
        return self._choose(prompt)

    def decode(self) -> Tensor:
        """Return the next token of each row, (rows, 1). Raises IndexError before any prefill."""
        return self._choose(self.tokens[-1])

    def token_ids(self) -> list[list[int]]:
        """Return the tokens chosen so far, a list for each row."""
        return torch.cat(self.tokens, dim=1).tolist()

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes that llama.cpp keeps of each token of a row: keys and values in float16, and its place."""
        return self.context.bytes_per_token(self.read)

    def _choose(self, token_ids: Tensor) -> Tensor:
        logits = self.context.decode(token_ids.numpy(), self.read, every=False)
        self.read += token_ids.shape[1]
        self.tokens.append(torch.from_numpy(np.argmax(logits, axis=-1)))
        return self.tokens[-1]
