"""How far a compressed model's predictions are from the uncompressed one's, token by token.

The baseline's final hidden states are kept, not its logits, which are eighty times as large; its head is applied to
them anew, a few tokens at a time, and so is the candidate's to its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.models.architecture import head
from squeeze.probes.scoring import HEAD_ROWS, SOFTMAX_ROWS

FILE_NAME = "hidden.safetensors"
TENSOR = "hidden"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

Head = Callable[[Tensor], Tensor]


@dataclass
class HiddenWriter:
    """Writes the hidden states of ``tokens`` tokens to a safetensors file as they come; none stay in memory."""

    file: BinaryIO
    tokens: int
    written: int = 0

    def __call__(self, hidden: Tensor) -> None:
        """hidden: (n, hidden), of the next n tokens."""
        if self.written == 0:
            self.file.write(_header(self.tokens, hidden))
        self.file.write(hidden.contiguous().cpu().view(torch.uint8).numpy().data)
        self.written += len(hidden)


@contextmanager
def hidden_writer(folder: Path, tokens: int) -> Iterator[HiddenWriter]:
    """What keeps hidden states in ``folder``, where ``Divergence`` finds them."""
    with (folder / FILE_NAME).open("wb") as file:
        yield HiddenWriter(file, tokens)


@dataclass
class Divergence:
    """Compares predictions as their hidden states come, in the baseline's order of tokens.

    folder: of the baseline's hidden states. head: the candidate's; baseline_head: the baseline's own (``stored_head``).
    kl: KL(baseline || candidate) in nats; top1: whether both find the same token likeliest; (n,) tensors on the CPU.
    """

    folder: Path
    head: Head
    baseline_head: Head
    kl: list[Tensor] = field(default_factory=list)
    top1: list[Tensor] = field(default_factory=list)
    compared: int = 0

    @torch.inference_mode()
    def __call__(self, hidden: Tensor) -> None:
        """hidden: (n, hidden), the candidate's of the next n tokens.

        Raises IntegrityError where the baseline's are missing, SqueezeError where it has another vocabulary.
        """
        baseline = _read(self.folder, self.compared, self.compared + len(hidden)).to(hidden.device)
        for start in range(0, len(hidden), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            expected, found = self.baseline_head(baseline[part]), self.head(hidden[part])
            for few in zip(torch.split(expected, SOFTMAX_ROWS), torch.split(found, SOFTMAX_ROWS), strict=True):
                kl, top1 = divergence(*few)
                self.kl.append(kl.cpu())
                self.top1.append(top1.cpu())
        self.compared += len(hidden)


def divergence(baseline: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """KL(baseline || candidate) in nats, (n,) float32, and whether the likeliest token is the same, (n,) bool.

    baseline, candidate: logits, (n, vocabulary). KL(P || Q) = sum over tokens of P log(P / Q).
    Raises SqueezeError where the vocabularies differ in size.
    """
    if baseline.shape != candidate.shape:
        sizes = f"{baseline.shape[-1]:,} tokens, the compressed one {candidate.shape[-1]:,}"
        raise SqueezeError(f"the uncompressed model predicts {sizes}; divergence needs the same vocabulary")
    expected, found = (F.log_softmax(logits.float(), dim=-1) for logits in (baseline, candidate))
    kl = F.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
    return kl, baseline.argmax(-1) == candidate.argmax(-1)


def stored_head(folder: Path, model: nn.Module) -> Head:
    """The head of the artifact in ``folder``, read without the rest of it, on the device of ``model``.

    model: any of the same architecture, to know what the head is called. Raises IntegrityError for a folder without it.
    """
    names = {module: name for name, module in model.named_modules()}
    name, tied = names[head(model)], artifact.describe(folder)["tied"]
    device = next(model.parameters()).device
    try:
        with safe_open(folder / artifact.WEIGHTS, framework="pt", device=str(device)) as file:
            stored = {part: tied.get(f"{name}.{part}", f"{name}.{part}") for part in ("weight", "bias")}
            found = set(file.keys())
            weight = file.get_tensor(stored["weight"])
            bias = file.get_tensor(stored["bias"]) if stored["bias"] in found else None
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder.name}: no readable head {name!r} ({error}); build the baseline again") from error
    return partial(F.linear, weight=weight, bias=bias)


def _header(tokens: int, hidden: Tensor) -> bytes:
    """The beginning of a safetensors file: the length of its description (8 bytes), and the description."""
    shape = [tokens, hidden.shape[-1]]
    end = shape[0] * shape[1] * hidden.element_size()
    text = json.dumps({TENSOR: {"dtype": DTYPES[hidden.dtype], "shape": shape, "data_offsets": [0, end]}})
    padded = text.encode().ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded


def _read(folder: Path, start: int, end: int) -> Tensor:
    """(end - start, hidden): the baseline's hidden states of those tokens."""
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
