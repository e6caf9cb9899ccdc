"""Score an engine that is in memory as lm-eval's HFLM would, in a fraction of its time: our lm-eval model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from squeeze.core.errors import SqueezeError
from squeeze.models.architecture import last_hidden_state
from squeeze.models.subject import Subject
from squeeze.probes import scorer
from squeeze.probes.memory import trim_heap
from squeeze.probes.scorer import Scorer
from squeeze.probes.scoring import Request, Row, batches, by_length, one_by_one, pack
from squeeze.runtimes.contract import Engine, States

UNLIMITED = 2048  # positions of a model that names no limit, as in HFLM


@dataclass(frozen=True)
class Windows:
    """Define how perplexity is taken: the first ``tokens`` tokens, in windows of ``window``, one every ``stride``.

    No BOS token is added: the first token of a window is context only. Where windows overlap, a token is scored in
    the first window that predicts it.
    """

    tokens: int
    window: int
    stride: int

    def spans(self) -> list[tuple[int, int, int]]:
        """Return (start, first scored, end) of each window, in tokens of the text."""
        spans, scored = [], 0
        for start in range(0, self.tokens, self.stride):
            end = min(start + self.window, self.tokens)
            first = max(start + 1, scored)
            if first < end:
                spans.append((start, first, end))
            scored = end
        return spans

    def rows(self, token_ids: Sequence[int]) -> list[Row]:
        """Return what is scored of a text of so many tokens: a row for each window, which owns its number."""
        return [
            Row(tuple(token_ids[start:first]), (tuple(token_ids[first:end]),), (number,))
            for number, (start, first, end) in enumerate(self.spans())
        ]

    @property
    def scored(self) -> int:
        """Return how many tokens are scored."""
        return sum(end - first for _, first, end in self.spans())


@dataclass(frozen=True)
class TokenScores:
    """Hold the scored tokens of a text, in order; n of them.

    nll: (n,) float32, negative log-likelihood in nats; window: (n,) int32, the window that predicted it;
    text_bytes: UTF-8 bytes of the text that they stand for; tokens_sha256: of all the text's tokens, as int64.
    """

    nll: np.ndarray[Any, np.dtype[np.float32]]
    window: np.ndarray[Any, np.dtype[np.int32]]
    text_bytes: int
    tokens_sha256: str

    @property
    def perplexity(self) -> float:
        """Return token perplexity: exp of the mean NLL (infinite where that overflows)."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nll.mean(dtype=np.float64)))

    @property
    def bits_per_byte(self) -> float:
        """Return bits per byte of the text: comparable between tokenizers, which perplexity is not."""
        return float(self.nll.sum(dtype=np.float64) / np.log(2) / self.text_bytes)


class TokenLM(TemplateLM):  # type: ignore[misc] # lm-eval has no types
    """Compute log-likelihoods of lm-eval's requests, by a ``Scorer``.

    Batches depend on nothing but the requests, the tokenizer, ``token_budget`` and ``packed``, so they are the same for
    all artifacts of a model. A ``token_budget`` of 0 scores one unpadded row at a time; ``packed`` says whether the
    continuations of a context share its row. max_length: the most tokens that are taken at once. observe: called with
    what the scorer predicts from, the hidden states, (n, hidden), or the logits, (n, vocabulary), of each next n tokens
    of a text, in order. scores: those of the last text.
    """

    scores: TokenScores

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        windows: Windows,
        *,
        max_length: int,
        token_budget: int,
        packed: bool,
        observe: Callable[[Tensor], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.windows = windows
        self.token_budget = token_budget
        self.packed = packed
        self.observe = observe
        self.max_length = max_length
        # A question's context is encoded once, not once a choice.
        self._encode = lru_cache(maxsize=4096)(self.tokenizer.encode)

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that stands for an empty context."""
        beginning = self.tokenizer.bos_token_id
        return self.eot_token_id if beginning is None else int(beginning)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids, with the special tokens that the tokenizer itself adds, but no second BOS."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return list(self._encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding gives it) for each (context, continuation)."""
        return super().loglikelihood(requests, disable_tqdm)  # type: ignore[no-any-return]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        items = [self._truncated(text, context, continuation) for text, context, continuation in requests]
        rows = pack(items, self.token_budget) if self.packed else one_by_one(items)
        total = torch.zeros(len(items), dtype=torch.float64)
        greedy = torch.ones(len(items), dtype=torch.bool)
        for batch in self._batches(by_length(rows)):
            predicted = self.scorer.predict(batch)
            log_probability, chosen = self.scorer.log_probabilities(predicted)
            total.index_add_(0, predicted.owners, log_probability.double())
            greedy[predicted.owners[~chosen]] = False
        return list(zip(total.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        """Return the log-likelihood of the scored tokens of each text; ``scores`` keeps those of the last one."""
        return [self._rolling(*request.args) for request in requests]

    def _rolling(self, text: str) -> float:
        token_ids, ends = encode_with_ends(self.tokenizer, text, self.windows.tokens)
        nll, window = [], []
        for batch in self._batches(self.windows.rows(token_ids)):
            predicted = self.scorer.predict(batch)
            self.observe(predicted.hidden)
            nll.append(-self.scorer.log_probabilities(predicted)[0].numpy())
            window.append(predicted.owners.numpy().astype(np.int32))
        spans = self.windows.spans()
        scored_bytes = sum(len(text[ends[first - 1] : ends[end - 1]].encode()) for _, first, end in spans)
        digest = hashlib.sha256(np.array(token_ids, dtype="<i8").tobytes()).hexdigest()
        self.scores = TokenScores(np.concatenate(nll), np.concatenate(window), scored_bytes, digest)
        return -float(self.scores.nll.sum(dtype=np.float64))

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Yield batches, each after freed memory was given back: allocators hoard it, more for every new length."""
        for batch in batches(rows, self.token_budget):
            trim_heap()
            yield batch

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Refuse to generate: our tasks compare log-likelihoods, none of them generates."""
        raise SqueezeError(f"{len(requests)} requests ask for generated text; use tasks that score given text")

    def _truncated(self, text: tuple[str, str], context: Sequence[int], continuation: Sequence[int]) -> Request:
        """Return the request within the model's positions: as HFLM does, the context loses its beginning.

        Raises SqueezeError where the continuation alone is too long, or empty.
        """
        if not 0 < len(continuation) <= self.max_length:
            raise SqueezeError(
                f"{text[1][:60]!r} has {len(continuation):,} tokens to score, expected 1 to {self.max_length:,}"
            )
        kept = self.max_length + 1 - len(continuation)
        return Request(tuple(context[-kept:]), tuple(continuation))


def subject_lm(
    subject: Subject,
    windows: Windows,
    *,
    token_budget: int,
    packed: bool = True,
    states: States = last_hidden_state,
    observe: Callable[[Tensor], None] = lambda _: None,
) -> TokenLM:
    """Return the lm-eval model of a subject, by its hidden states.

    states: how they come about, as in ``scoring.predict``; all but a plain forward need unpacked rows, one at a time.
    """
    return TokenLM(
        scorer.of_model(subject.model, states),
        subject.tokenizer,
        windows,
        max_length=max_length(subject.model.config, subject.tokenizer),
        token_budget=token_budget,
        packed=packed,
        observe=observe,
    )


def engine_lm(
    engine: Engine, windows: Windows, *, max_length: int, observe: Callable[[Tensor], None] = lambda _: None
) -> TokenLM:
    """Return the lm-eval model of an engine that torch cannot look into, by its logits: one row at a time."""
    how = scorer.of_engine(engine)
    return TokenLM(how, engine.tokenizer, windows, max_length=max_length, token_budget=0, packed=False, observe=observe)


def max_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model takes at once: what its configuration says, else its tokenizer."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < 1e9 else UNLIMITED


def encode_with_ends(
    tokenizer: PreTrainedTokenizerBase, text: str, count: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a text's first ``count`` token ids, without special tokens, and the character at which each one ends.

    Of tokens that share a character, the first one has it. Raises SqueezeError where the text has fewer.
    """
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    if len(ids) < count:
        raise SqueezeError(f"the perplexity text has {len(ids):,} tokens, the protocol asks for {count:,}")
    return tuple(ids[:count]), tuple(end for _, end in offsets[:count])
