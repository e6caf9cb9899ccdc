"""Share what engines have in common that run an exported folder with a configuration and a tokenizer in it.

Such an engine is a function that reads tokens behind those that it has read, and returns logits at some of their
places; what it keeps of them lies in the engine. One is made for each generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from squeeze.core.errors import Unsupported
from squeeze.runtimes import generation

# (token_ids, places): (rows, tokens) int64, (n,) int64 of 0 to tokens - 1 -> logits (rows, n, vocabulary)
Read = Callable[[Tensor, Tensor], Tensor]

GROUP = 512  # tokens of a text that are scored at a time, each group behind those before it


@dataclass(frozen=True)
class Exported:
    """Hold what an exported folder says beside its graph."""

    folder: Path
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, folder: Path) -> Exported:
        """Read a folder."""
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return cls(folder, config, AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def check_length(self, positions: int) -> None:
        """Raise Unsupported when the model has fewer positions than are asked for."""
        model: Any = SimpleNamespace(config=self.config)
        generation.check_length(model, positions)


@dataclass
class Generation:
    """Run one greedy generation. tokens: those chosen so far, each (rows, 1) int64."""

    read: Read
    bytes_per_token: float
    tokens: list[Tensor] = field(default_factory=list)

    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, (rows, tokens) int64, and return the first token of each row, (rows, 1)."""
        return self._choose(prompt)

    def decode(self) -> Tensor:
        """Return the next token of each row, (rows, 1). Raises IndexError before any prefill."""
        return self._choose(self.tokens[-1])

    def token_ids(self) -> list[list[int]]:
        """Return the tokens chosen so far, a list for each row."""
        return torch.cat(self.tokens, dim=1).tolist()

    def _choose(self, token_ids: Tensor) -> Tensor:
        last = torch.tensor([token_ids.shape[1] - 1])
        token: Tensor = self.read(token_ids, last).argmax(-1)
        self.tokens.append(token)
        return token


def logits(read: Read, token_ids: Tensor) -> Tensor:
    """Return the logits after each given token, (rows, tokens, vocabulary) float32, of what has read nothing yet."""
    parts = torch.split(token_ids, GROUP, dim=1)
    return torch.cat([read(part, torch.arange(part.shape[1])).float() for part in parts], dim=1)


def log_probabilities(read: Read, token_ids: Tensor) -> Tensor:
    """Return the log-probability of each given token after the first, in nats, of what has read nothing yet.

    token_ids: (rows, tokens) int64 -> (rows, tokens - 1) float32. Of GROUP tokens of a row logits are held at a time.
    """
    given, following = torch.split(token_ids[:, :-1], GROUP, dim=1), torch.split(token_ids[:, 1:], GROUP, dim=1)
    parts = (
        generation.log_probability(read(part, torch.arange(part.shape[1])), after)
        for part, after in zip(given, following, strict=True)
    )
    return torch.cat(list(parts), dim=1)


def chosen(runtime: str, field_name: str, value: str, known: Mapping[str, Any]) -> Any:
    """Return what a field's value stands for. Raises Unsupported, with those that there are, for another."""
    if value not in known:
        raise Unsupported(f"runtime={runtime} has no {field_name} {value!r}; expected one of {', '.join(known)}")
    return known[value]


def check_cpu(runtime: str, device: str) -> None:
    """Raise Unsupported for another device than the CPU."""
    if device != "cpu":
        raise Unsupported(f"runtime={runtime} runs on CPUs here, asked for {device}; use device=cpu")
