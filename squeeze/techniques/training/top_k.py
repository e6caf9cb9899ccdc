"""Keep the teacher's k likeliest tokens at each position once, for every student that reads the same text.

What a teacher says of 49,152 tokens is nearly all said of a few dozen. The others are one class, which has the rest of
the probability; a student is compared in these k + 1 classes. With as many classes as tokens, nothing would be lost.
A temperature softens tokens (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, eq. 1) before the others become a class: as
one that is softened itself, many rare tokens would have far less than they then have together.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from squeeze.core import cache
from squeeze.core.errors import Unsupported
from squeeze.core.progress import counted
from squeeze.models.architecture import last_hidden_state
from squeeze.models.digest import digest
from squeeze.models.logits import logits_of
from squeeze.techniques.losses import Target

VERSION = "top k, 2"  # part of the key: raise it when what is kept changes
INFO, TENSORS = "kept.json", "kept.safetensors"
AT_ONCE = 256  # positions whose logits lie in memory together


@dataclass(frozen=True)
class TopK:
    """Hold what a teacher says of the windows that a training reads, by their numbers.

    tokens: (windows, window, k) int32, the likeliest first. log_probabilities: (windows, window, k + 1) float32, at the
    temperature, the last of all other tokens together. mass: the mean share of probability of the k, at a temperature
    of 1. seconds: what the teacher's reading took, now or once; reused_seconds: the same where it did not read now.
    """

    tokens: Tensor
    log_probabilities: Tensor
    temperature: float
    mass: float
    seconds: float
    reused_seconds: float

    @classmethod
    def of(cls, teacher: nn.Module, token_ids: Tensor, k: int, temperature: float) -> TopK:
        """Return what the cache has of this teacher, windows (windows, window), k and temperature; else read them now.

        It takes 8 k bytes a token, on disk and in memory. Raises Unsupported unless k leaves some tokens out.
        """
        check_count(k, vocabulary_of(teacher))
        version = f"{VERSION}, {k}, {float(temperature)!r}"
        made_now = False

        def make(folder: Path) -> None:
            nonlocal made_now
            made_now = True
            _collect(teacher, token_ids, k, temperature, folder)

        folder = cache.sealed(f"calibration/top_k_{digest(teacher, version, token_ids=token_ids)}", make)
        info = json.loads((folder / INFO).read_text())
        tensors = load_file(folder / TENSORS, device=str(token_ids.device))
        seconds = float(info["seconds"])
        reused = 0.0 if made_now else seconds
        return cls(**tensors, temperature=temperature, mass=info["mass"], seconds=seconds, reused_seconds=reused)

    def said(self, numbers: Tensor) -> Target:
        """Return what it says of the windows of these numbers, (n,) int64, for objectives of this temperature."""
        tensors = (self.tokens[numbers], self.log_probabilities[numbers])
        return Target(partial(_of_kept, self.temperature), tuple(tensor.flatten(0, 1) for tensor in tensors))


def vocabulary_of(model: nn.Module) -> int:
    """Return how many tokens a language model tells apart."""
    return int(model.config.vocab_size)  # type: ignore[union-attr,arg-type]


def check_count(k: int, vocabulary: int) -> None:
    """Raise Unsupported unless k of so many tokens are some, and leave some out."""
    if not 1 <= k < vocabulary:
        raise Unsupported(f"top_k is {k:,}, expected 1 to {vocabulary - 1:,} (null: all {vocabulary:,} tokens)")


def classes(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log-probabilities (n, k + 1) of tokens (n, k) int64, and of all others together, of logits (n, tokens)."""
    every = logits.log_softmax(-1)
    others = every.scatter(1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([every.gather(1, tokens), others], dim=1)


def _of_kept(temperature: float, logits: Tensor, tokens: Tensor, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's logits and the student's, (n, k + 1) each, of the kept classes.

    The classes are softened already. What compares them divides by the temperature once more and normalises, so it is
    given T log p_T, of which that makes log p_T again.
    """
    return temperature * log_probabilities, temperature * classes(logits / temperature, tokens.long())


@torch.no_grad()
def _collect(teacher: nn.Module, token_ids: Tensor, k: int, temperature: float, folder: Path) -> None:
    start, output = time.perf_counter(), logits_of(teacher)
    tokens = torch.empty((*token_ids.shape, k), dtype=torch.int32)
    log_probabilities = torch.empty((*token_ids.shape, k + 1))
    left_out = 0.0
    with counted(f"the teacher's {k} likeliest tokens, by window", len(token_ids)) as advance:
        for number, window in enumerate(token_ids):
            hidden = last_hidden_state(teacher, input_ids=window[None], use_cache=False)[0]
            for first in range(0, len(window), AT_ONCE):
                at = slice(first, first + AT_ONCE)
                logits = output(hidden[at]).float()
                likeliest = logits.topk(k).indices
                tokens[number, at] = likeliest.to("cpu", torch.int32)
                unsoftened = classes(logits, likeliest)
                softened = unsoftened if temperature == 1 else classes(logits / temperature, likeliest)
                log_probabilities[number, at] = softened.cpu()
                left_out += float(unsoftened[:, -1].double().exp().sum())
            advance(number + 1)
    save_file({"tokens": tokens, "log_probabilities": log_probabilities}, folder / TENSORS)
    mass = 1 - left_out / max(1, token_ids.numel())
    (folder / INFO).write_text(json.dumps({"mass": mass, "seconds": time.perf_counter() - start}))
