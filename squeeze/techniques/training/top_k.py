"""Keep the teacher's k likeliest tokens at each position once, for every student that reads the same text.

What a teacher says of 49,152 tokens is nearly all said of a few dozen. The others are one class, which has the rest of
the probability; a student is compared in these k + 1 classes. With as many classes as tokens, nothing would be lost.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
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

VERSION = "top k, 1"  # part of the key: raise it when what is kept changes
INFO, TENSORS = "kept.json", "kept.safetensors"
AT_ONCE = 256  # positions whose logits lie in memory together


@dataclass(frozen=True)
class TopK:
    """Hold what a teacher says of the windows that a training reads, by their numbers.

    tokens: (windows, window, k) int32, the likeliest first. log_probabilities: (windows, window, k + 1) float32 at a
    temperature of 1, the last of all other tokens together. mass: the mean share of probability of the k.
    reused_seconds: what the teacher's reading had once cost, where it did not read now.
    """

    tokens: Tensor
    log_probabilities: Tensor
    mass: float
    reused_seconds: float

    @classmethod
    def of(cls, teacher: nn.Module, token_ids: Tensor, k: int) -> TopK:
        """Return what the cache has of this teacher, these windows (windows, window) and this k; else read them now.

        It takes 8 k bytes a token, on disk and in memory. Raises Unsupported unless k leaves some tokens out.
        """
        vocabulary: int = teacher.config.vocab_size  # type: ignore[union-attr,assignment]
        if not 1 <= k < vocabulary:
            raise Unsupported(f"top_k is {k:,}, expected 1 to {vocabulary - 1:,} (null: all {vocabulary:,} tokens)")
        made_now = False

        def make(folder: Path) -> None:
            nonlocal made_now
            made_now = True
            _collect(teacher, token_ids, k, folder)

        folder = cache.sealed(f"calibration/top_k_{digest(teacher, f'{VERSION}, {k}', token_ids=token_ids)}", make)
        info = json.loads((folder / INFO).read_text())
        tensors = load_file(folder / TENSORS, device=str(token_ids.device))
        return cls(**tensors, mass=info["mass"], reused_seconds=0.0 if made_now else info["seconds"])

    def said(self, numbers: Tensor) -> Target:
        """Return what the teacher says of the windows of these numbers, (n,) int64."""
        tensors = (self.tokens[numbers], self.log_probabilities[numbers])
        return Target(_of_kept, tuple(tensor.flatten(0, 1) for tensor in tensors))


def classes(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log-probabilities (n, k + 1) of tokens (n, k) int64, and of all others together, of logits (n, tokens)."""
    every = logits.log_softmax(-1)
    others = every.scatter(1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([every.gather(1, tokens), others], dim=1)


def _of_kept(logits: Tensor, tokens: Tensor, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the kept classes. A temperature softens these classes, not the tokens within the last."""
    return log_probabilities, classes(logits, tokens.long())


@torch.no_grad()
def _collect(teacher: nn.Module, token_ids: Tensor, k: int, folder: Path) -> None:
    start, output = time.perf_counter(), logits_of(teacher)
    tokens = torch.empty((*token_ids.shape, k), dtype=torch.int32)
    log_probabilities = torch.empty((*token_ids.shape, k + 1))
    with counted(f"the teacher's {k} likeliest tokens, by window", len(token_ids)) as advance:
        for number, window in enumerate(token_ids):
            hidden = last_hidden_state(teacher, input_ids=window[None], use_cache=False)[0]
            for first in range(0, len(window), AT_ONCE):
                at = slice(first, first + AT_ONCE)
                logits = output(hidden[at]).float()
                likeliest = logits.topk(k).indices
                tokens[number, at] = likeliest.to("cpu", torch.int32)
                log_probabilities[number, at] = classes(logits, likeliest).cpu()
            advance(number + 1)
    save_file({"tokens": tokens, "log_probabilities": log_probabilities}, folder / TENSORS)
    mass = 1 - float(log_probabilities[..., -1].double().exp().mean())
    (folder / INFO).write_text(json.dumps({"mass": mass, "seconds": time.perf_counter() - start}))
