"""Greedy generation one forward at a time, so that a caller can time each token; and warming up until times settle.

Prefill: the prompt's forward, the head applied to its last position only, and the choice of the first token: what a
user waits for (TTFT). Decode: one forward of one token on the key-value cache, and the choice of the next. Neither
returns before the device has done it: on CUDA both wait for the current stream.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, StaticCache

from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.probes.kv_cache import cache_of, is_quantized

Clock = Callable[[], float]

MOST_WINDOWS = 8  # of warm-up calls; after that the process is flagged
AGREEMENT = 0.10  # two windows agree when their medians differ by less than this share


@dataclass
class Generation:
    """One greedy generation in progress. tokens: those chosen so far, each (batch, 1) int64.

    prefill_forward and decode_forward: the model, or a compiled form of it.
    """

    prefill_forward: Callable[..., Any]
    decode_forward: Callable[..., Any]
    cache: Cache
    synchronize: Callable[[], None]
    tokens: list[Tensor] = field(default_factory=list)

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> Tensor:
        """prompt: (batch, tokens) int64 -> the first token of each row, (batch, 1)."""
        return self._choose(self.prefill_forward, prompt)

    @torch.inference_mode()
    def decode(self) -> Tensor:
        """The next token of each row, (batch, 1). Raises IndexError before any prefill."""
        return self._choose(self.decode_forward, self.tokens[-1])

    def token_ids(self) -> list[list[int]]:
        """The tokens chosen so far, a list per row of the batch."""
        return torch.cat(self.tokens, dim=1).tolist()

    def _choose(self, forward: Callable[..., Any], input_ids: Tensor) -> Tensor:
        output = forward(input_ids=input_ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        token: Tensor = output.logits[:, -1:].argmax(-1)
        self.synchronize()
        self.tokens.append(token)
        return token


def starter(subject: Subject, runtime: Mapping[str, Any], protocol: Mapping[str, Any]) -> Callable[[], Generation]:
    """A function that begins a new generation in the given runtime, at the lengths of the protocol's `latency` part.

    Raises Unsupported when the model has fewer positions than those lengths need, and where a quantized cache, whose
    shapes change, meets a compiled runtime.
    """
    model = subject.model
    decoded = max(protocol["decode_tokens"], MOST_WINDOWS * protocol["warmup_rounds"])
    positions = protocol["prompt_tokens"] + decoded
    check_length(model, positions)
    synchronize = synchronizer(runtime["device"])
    if runtime["compile"]:
        if is_quantized(subject):
            raise Unsupported("a quantized cache grows and cannot be compiled; use runtime=eager")
        decode = compiled(model)
        return lambda: Generation(model, decode, StaticCache(model.config, max_cache_len=positions), synchronize)
    return lambda: Generation(model, model, cache_of(subject), synchronize)


def compiled(model: nn.Module) -> Callable[..., Any]:
    """The decode step as one compiled graph of fixed shapes: it needs a static cache. The first call takes minutes.

    Prefill stays eager, as in transformers' own generate: it is compute-bound and would need a graph per length.
    """
    return torch.compile(model.forward, fullgraph=True, dynamic=False)


def encoder(model: nn.Module, runtime: Mapping[str, Any], protocol: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """An encoder's forward, (batch, tokens) int64 -> (batch, tokens, hidden), in the given runtime.

    Raises Unsupported when the model has fewer positions than the protocol's prompt.
    """
    check_length(model, protocol["prompt_tokens"])
    synchronize = synchronizer(runtime["device"])
    forward = torch.compile(model.forward, dynamic=False) if runtime["compile"] else model

    @torch.inference_mode()
    def encode(prompt: Tensor) -> Tensor:
        hidden: Tensor = forward(input_ids=prompt).last_hidden_state
        synchronize()
        return hidden

    return encode


def check_length(model: nn.Module, positions: int) -> None:
    """Raises Unsupported when the model has fewer positions than the protocol asks for."""
    most = getattr(model.config, "max_position_embeddings", None)
    if isinstance(most, int) and most < positions:
        raise Unsupported(
            f"the model has {most} positions, the protocol's prompt and decoded tokens need {positions}; "
            "lower protocol.latency.prompt_tokens or decode_tokens"
        )


def synchronizer(device: str) -> Callable[[], None]:
    """What waits until the device has done all that was asked of it; on the CPU, a call is done when it returns."""
    if device.startswith("cuda"):
        return torch.cuda.current_stream(device).synchronize
    return lambda: None


def warm_up(call: Callable[[], object], window: int, clock: Clock = time.perf_counter) -> bool:
    """Repeat a call until its times agree over two consecutive windows of that many calls; whether they came to."""
    times: list[float] = []
    while len(times) < MOST_WINDOWS * window:
        start = clock()
        call()
        times.append(clock() - start)
        if len(times) >= 2 * window and agree(times[-2 * window : -window], times[-window:]):
            return True
    return False


def agree(earlier: Sequence[float], later: Sequence[float]) -> bool:
    """Whether the medians of two windows differ by less than `AGREEMENT` of the smaller one."""
    low, high = sorted((median(earlier), median(later)))
    return high < low * (1 + AGREEMENT)
