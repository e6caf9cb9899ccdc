"""Generate greedily, one forward at a time, so that a caller can time each token.

Prefill: the prompt's forward, the head applied to its last position only, and the choice of the first token: what a
user waits for (TTFT). Decode: one forward of one token on the key-value cache, and the choice of the next. Neither
returns before the device has done it: on CUDA both wait for the current stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import text_config
from squeeze.runtimes import kv_cache

Forward = Callable[..., Any]


@dataclass
class GreedyGeneration:
    """Run one greedy generation. tokens: those chosen so far, each (rows, 1) int64.

    prefill_forward and decode_forward: the model, or a compiled form of it. prompt_group: tokens of the prompt that are
    read at a time; None: all at once.
    """

    prefill_forward: Forward
    decode_forward: Forward
    cache: Cache
    synchronize: Callable[[], None]
    prompt_group: int | None = None
    tokens: list[Tensor] = field(default_factory=list)

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, (rows, tokens) int64, and return the first token of each row, (rows, 1)."""
        *before, last = torch.split(prompt, self.prompt_group or prompt.shape[1], dim=1)
        for part in before:
            self._read(self.prefill_forward, part)
        return self._choose(self.prefill_forward, last)

    @torch.inference_mode()
    def decode(self) -> Tensor:
        """Return the next token of each row, (rows, 1). Raises IndexError before any prefill."""
        return self._choose(self.decode_forward, self.tokens[-1])

    def token_ids(self) -> list[list[int]]:
        """Return the tokens chosen so far, a list for each row."""
        return torch.cat(self.tokens, dim=1).tolist()

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes that the cache keeps for each token of one row that was read."""
        return kv_cache.bytes_per_token(self.cache)

    def _choose(self, forward: Forward, input_ids: Tensor) -> Tensor:
        token: Tensor = self._read(forward, input_ids).logits[:, -1:].argmax(-1)
        self.synchronize()
        self.tokens.append(token)
        return token

    def _read(self, forward: Forward, input_ids: Tensor) -> Any:
        return forward(input_ids=input_ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each token in nats, (rows, tokens) float32.

    logits: (rows, tokens, vocabulary), each predicting the token of its place in ``tokens``: (rows, tokens) int64.
    """
    return logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def encoding(outputs: Any) -> Tensor:
    """Return what a model of whole texts gives: a classifier's logits, (rows, classes), or an encoder's last states."""
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state  # type: ignore[no-any-return]


def check_length(model: nn.Module, positions: int) -> None:
    """Raise Unsupported when the model has fewer positions than are asked for."""
    most = getattr(text_config(model), "max_position_embeddings", None)
    if isinstance(most, int) and most < positions:
        raise Unsupported(
            f"the model has {most} positions, the protocol's prompt and decoded tokens need {positions}; "
            "lower protocol.latency.prompt_tokens or decode_tokens"
        )


def synchronizer(device: str) -> Callable[[], None]:
    """Return what waits until the device has done all that was asked of it; on the CPU, a call is done on return."""
    if device.startswith("cuda"):
        return torch.cuda.current_stream(device).synchronize
    return lambda: None
