"""Measure how far a compressed model's predictions are from the uncompressed one's, token by token.

The baseline's final hidden states are kept, not its logits, which are eighty times as large; its head is applied to
them anew, a few tokens at a time, and so is the candidate's to its own. Both are applied in float32: rounding logits
to bfloat16 moves them by 4e-4 nats, and makes another token the likeliest of 3 % of the positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from squeeze.artifacts import format as artifact
from squeeze.artifacts import safetensors_header
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.layers.contract import is_compressed
from squeeze.models import architecture
from squeeze.models.architecture import head
from squeeze.models.logits import Logits, own_logits
from squeeze.models.settings import bfloat16_products
from squeeze.probes.scoring import HEAD_ROWS, SOFTMAX_ROWS

FILE_NAME = "hidden.safetensors"
TENSOR = "hidden"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

WIDENED_ROWS = 8192  # of a head's weights that are float32 at once


@dataclass
class HiddenWriter:
    """Write the hidden states of ``tokens`` tokens to a safetensors file as they come; none stay in memory."""

    file: BinaryIO
    tokens: int
    written: int = 0

    def __call__(self, hidden: Tensor) -> None:
        """Write hidden (n, hidden), the states of the next n tokens."""
        if self.written == 0:
            self.file.write(_header(self.tokens, hidden))
        self.file.write(hidden.contiguous().cpu().view(torch.uint8).numpy().data)
        self.written += len(hidden)


@contextmanager
def hidden_writer(folder: Path, tokens: int) -> Iterator[HiddenWriter]:
    """Open a writer that keeps hidden states in ``folder``, where ``Divergence`` finds them."""
    with (folder / FILE_NAME).open("wb") as file:
        yield HiddenWriter(file, tokens)


@dataclass
class Divergence:
    """Compare predictions as their hidden states come, in the baseline's order of tokens.

    folder: of the baseline's hidden states. head: the candidate's (``wide_head``); baseline_head: the baseline's own
    (``stored_head``).
    kl: KL(baseline || candidate) in nats; top1: whether both find the same token likeliest; confidence: the probability
    that the baseline gives its likeliest token; (n,) tensors on the CPU.
    """

    folder: Path
    head: Logits
    baseline_head: Logits
    kl: list[Tensor] = field(default_factory=list)
    top1: list[Tensor] = field(default_factory=list)
    confidence: list[Tensor] = field(default_factory=list)
    compared: int = 0

    @torch.inference_mode()
    def __call__(self, hidden: Tensor) -> None:
        """Compare hidden (n, hidden), the candidate's states of the next n tokens, with the baseline's.

        Raises IntegrityError where the baseline's are missing, SqueezeError where it has another vocabulary.
        """
        baseline = _read(self.folder, self.compared, self.compared + len(hidden)).to(hidden.device)
        for logits in logits_of_both((self.baseline_head, baseline), (self.head, hidden)):
            between = distance(*logits)
            self.kl.append(between.kl.cpu())
            self.top1.append(between.top1.cpu())
            self.confidence.append(between.confidence.cpu())
        self.compared += len(hidden)


class Distance(NamedTuple):
    """Hold, of n positions: kl, (n,) float32; top1, (n,) bool; confidence, (n,) float32; as in ``Divergence``."""

    kl: Tensor
    top1: Tensor
    confidence: Tensor


def logits_of_both(one: tuple[Logits, Tensor], other: tuple[Logits, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of two models at the same positions, a few rows at a time: those of all never exist at once.

    one, other: the head of a model and its hidden states, (n, hidden). Yields pairs of (few, vocabulary), in order.
    """
    (one_head, one_hidden), (other_head, other_hidden) = one, other
    for start in range(0, len(one_hidden), HEAD_ROWS):
        part = slice(start, start + HEAD_ROWS)
        both = one_head(one_hidden[part]), other_head(other_hidden[part])
        yield from zip(*(torch.split(logits, SOFTMAX_ROWS) for logits in both), strict=True)


def divergence(baseline: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(baseline || candidate) in nats, (n,) float32, and whether the likeliest token is the same, (n,) bool.

    Arguments and errors are those of ``distance``.
    """
    kl, top1, _ = distance(baseline, candidate)
    return kl, top1


def distance(baseline: Tensor, candidate: Tensor) -> Distance:
    """Return how far a candidate's predictions are from the baseline's, position by position.

    baseline, candidate: logits, (n, vocabulary). KL(P || Q) = sum over tokens of P log(P / Q).
    Raises SqueezeError where the vocabularies differ in size.
    """
    if baseline.shape != candidate.shape:
        sizes = f"{baseline.shape[-1]:,} tokens, the compressed one {candidate.shape[-1]:,}"
        raise SqueezeError(f"the uncompressed model predicts {sizes}; divergence needs the same vocabulary")
    expected, found = (F.log_softmax(logits.float(), dim=-1) for logits in (baseline, candidate))
    agree = baseline.argmax(-1) == candidate.argmax(-1)
    return Distance(relative_entropy(expected, found), agree, expected.amax(-1).exp())


def relative_entropy(expected: Tensor, found: Tensor) -> Tensor:
    """Return KL(P || Q) in nats, (n,), of P = exp(expected) and Q = exp(found): log-probabilities (n, vocabulary)."""
    return F.kl_div(found, expected, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True)
class WideHead:
    """Multiply by a head in float32: (..., hidden) -> (..., vocabulary), whatever both are stored in.

    weight: (vocabulary, hidden), widened some rows at a time; bias: (vocabulary,) or None. Where both factors are
    bfloat16 their products are exact in float32, and are made in bfloat16, at a third of the time.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return float32 logits."""
        inputs = hidden.flatten(0, -2).float()
        logits = inputs.new_empty((len(inputs), len(self.weight)))
        exact = hidden.dtype == self.weight.dtype == torch.bfloat16
        with bfloat16_products() if exact else nullcontext():
            for start in range(0, len(self.weight), WIDENED_ROWS):
                rows = slice(start, start + WIDENED_ROWS)
                torch.mm(inputs, self.weight[rows].float().T, out=logits[:, rows])
        if self.bias is not None:
            logits += self.bias.float()
        return logits.reshape(*hidden.shape[:-1], -1)


def wide_head(model: nn.Module) -> Logits:
    """Return a model's own way from hidden states to logits, in float32. A compressed head is made dense once."""
    layer = head(model)
    weight = layer.dequantize() if is_compressed(layer) else architecture.weight(layer)
    return partial(own_logits, model, output=WideHead(weight, architecture.bias(layer)))


def stored_head(folder: Path, device: torch.device) -> Logits:
    """Return an artifact's own way from hidden states to logits, in float32: of its weights, only the head is read.

    What its configuration does to logits is done to these. Raises IntegrityError for a folder without a head.
    """
    model = artifact.skeleton(folder)
    names = {module: name for name, module in model.named_modules()}
    name, tied = names[head(model)], artifact.describe(folder)["tied"]
    try:
        with safe_open(folder / artifact.WEIGHTS, framework="pt", device=str(device)) as file:
            stored = {part: tied.get(f"{name}.{part}", f"{name}.{part}") for part in ("weight", "bias")}
            found = set(file.keys())
            weight = file.get_tensor(stored["weight"])
            bias = file.get_tensor(stored["bias"]) if stored["bias"] in found else None
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder.name}: no readable head {name!r} ({error}); build the baseline again") from error
    return partial(own_logits, model, output=WideHead(weight, bias))


def _header(tokens: int, hidden: Tensor) -> bytes:
    """Return the beginning of the safetensors file of all hidden states."""
    shape = [tokens, hidden.shape[-1]]
    end = shape[0] * shape[1] * hidden.element_size()
    return safetensors_header.encode(
        {TENSOR: {"dtype": DTYPES[hidden.dtype], "shape": shape, "data_offsets": [0, end]}}
    )


def _read(folder: Path, start: int, end: int) -> Tensor:
    """Return the baseline's hidden states of those tokens, (end - start, hidden)."""
    try:
        with safe_open(folder / FILE_NAME, framework="pt") as file:
            states: Tensor = file.get_slice(TENSOR)[start:end]
    except (OSError, SafetensorError) as error:
        raise IntegrityError(
            f"the baseline's {FILE_NAME} is not readable ({error}); score the baseline again"
        ) from error
    if len(states) != end - start:
        raise IntegrityError(f"the baseline's {FILE_NAME} ends before token {end:,}; score the baseline again")
    return states
