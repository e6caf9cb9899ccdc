"""Drop whole blocks: what is left is the same model with fewer of them.

Which stay: either one block out of every few, evenly, as the students of DistilBERT are begun (Sanh, Debut, Chaumond,
Wolf 2019, arXiv:1910.01108, section 3: "taking one layer out of two"), or those of the greatest influence (Men, Xu,
Zhang, Wang, Lin, Lu, Han, Chen 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv:2403.03853), or those without which a text is predicted worst (Kim, Kim, Kim, Castells, Choi, Shin, Song 2024,
"Shortened LLaMA: Depth Pruning for Large Language Models with Comparison of Retraining Methods", arXiv:2402.02834).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters, distinct_share
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.models.surgery import highest, keep_blocks
from squeeze.techniques import losses
from squeeze.techniques.contract import Calibration

CRITERIA = ("every_other", "influence", "perplexity")
TOKENS = 2048  # that go through the model at once
SCORED = 8192  # tokens of the text that are predicted, once without each block; the paper takes ten short samples


@dataclass(frozen=True)
class LayerDrop:
    """Keep a share of the blocks, in their order; nothing is trained, and no weight that stays is changed.

    layers_kept: share of the blocks that stay, above 0, at most 1; rounded to whole blocks, at least one.
    by: "every_other": evenly spaced, the first and the last among them; "influence": those that change what goes
    through them most (``influence``), all scores taken from the model as it was (ShortGPT's one-shot removal);
    "perplexity": those without which text is predicted worst (``rises``), at one shot, too.
    """

    layers_kept: float
    by: Literal["every_other", "influence", "perplexity"]

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with fewer blocks.

        Raises Unsupported for another share or criterion, as ``surgery.keep_blocks`` does, and for perplexity of a
        model that predicts no tokens; SqueezeError where text is asked for and there is none.
        """
        if not 0 < self.layers_kept <= 1:
            raise Unsupported(f"layer_drop cannot keep a share of {self.layers_kept}; expected more than 0, at most 1")
        if self.by not in CRITERIA:
            raise Unsupported(f"layer_drop has no criterion {self.by!r}; expected one of {', '.join(CRITERIA)}")
        model, before = subject.model, len(architecture.blocks(subject.model))
        count = max(1, round(self.layers_kept * before))
        if self.by == "every_other":
            kept = evenly_spaced(before, count)
        else:
            score = influence if self.by == "influence" else rises
            kept = highest(score(model, calibration.token_ids), count)
        parameters = subject.claims.get("parameters", count_parameters(model))
        keep_blocks(model, kept)
        share = subject.claims.get("layers_kept", 1.0) * count / before
        shared = {"weights_kept": distinct_share(model)} if "weights_kept" in subject.claims else {}
        return subject.claiming(layers_kept=share, parameters=parameters, **shared)


def evenly_spaced(blocks: int, count: int) -> list[int]:
    """Return ``count`` of so many blocks, evenly spaced, the first and the last among them; the first, if one.

    Of 12, 6 are 0, 2, 4, 7, 9 and 11: those that DistilBERT's authors take.
    """
    return [round(place * (blocks - 1) / max(count - 1, 1)) for place in range(count)]


@torch.no_grad()
def influence(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """Return each block's influence over these windows, (samples, window) int64: (blocks,) float64.

    BI_i = 1 - E[x_i . x_(i+1) / (|x_i| |x_(i+1)|)] (eq. 1), x_i what block i reads at a token and x_(i+1) what it
    leaves, the mean over all tokens. Raises SqueezeError where there are none.
    """
    _check_text("influence", token_ids)
    blocks = architecture.blocks(model)
    cosines = torch.zeros(len(blocks), dtype=torch.float64)

    def note(place: int, _: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any], outputs: Any) -> None:
        before = _read(inputs, named)
        after = outputs[0] if isinstance(outputs, tuple) else outputs
        cosines[place] += float(F.cosine_similarity(before.double(), after.double(), dim=-1).sum())

    handles = [
        block.register_forward_hook(partial(note, place), with_kwargs=True) for place, block in enumerate(blocks)
    ]
    try:
        for windows in _at_once(token_ids):
            architecture.base_model(model)(input_ids=windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return 1 - cosines / token_ids.numel()


@torch.no_grad()
def rises(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """Return by how many nats a token the loss rises without each block alone: (blocks,) float64.

    token_ids: (samples, window) int64, of which the first ``SCORED`` tokens, whole windows, are predicted (section 3.2:
    perplexity over a calibration set, whose logarithm this is; it orders blocks alike). Raises Unsupported for a model
    without a head, SqueezeError where there are no tokens.
    """
    architecture.head(model)
    _check_text("perplexity", token_ids)
    scored = token_ids[: max(SCORED // token_ids.shape[1], 1)]
    whole = _loss(model, scored)
    found = []
    for block in architecture.blocks(model):
        with _skipped(block):
            found.append(_loss(model, scored) - whole)
    return torch.tensor(found, dtype=torch.float64)


@contextmanager
def _skipped(block: nn.Module) -> Iterator[None]:
    """Let a block leave what it reads as it is."""

    def leave(_: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any], outputs: Any) -> Any:
        before = _read(inputs, named)
        return (before, *outputs[1:]) if isinstance(outputs, tuple) else before

    handle = block.register_forward_hook(leave, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _loss(model: nn.Module, token_ids: torch.Tensor) -> float:
    """Return the mean loss of a token, in nats; token_ids: (samples, window) int64."""
    total = sum(float(losses.next_token(model, windows)) * len(windows) for windows in _at_once(token_ids))
    return total / len(token_ids)


def _at_once(token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(token_ids, max(TOKENS // token_ids.shape[1], 1))


def _read(inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Return the hidden states that a block was called with."""
    return inputs[0] if inputs else named["hidden_states"]


def _check_text(what: str, token_ids: torch.Tensor) -> None:
    if token_ids.numel() == 0:
        raise SqueezeError(f"{what} needs text, found no tokens; name a calibration with a corpus, or by=every_other")
