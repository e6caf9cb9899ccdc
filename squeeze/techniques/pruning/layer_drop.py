"""Drop whole blocks: what is left is the same model with fewer of them.

Which stay: either one block out of every few, evenly, as the students of DistilBERT are begun (Sanh, Debut, Chaumond,
Wolf 2019, arXiv:1910.01108, section 3: "taking one layer out of two"), or those of the greatest influence (Men, Xu,
Zhang, Wang, Lin, Lu, Han, Chen 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv:2403.03853).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.models.surgery import highest, keep_blocks
from squeeze.techniques.contract import Calibration

TOKENS = 2048  # that go through the model at once


@dataclass(frozen=True)
class LayerDrop:
    """Keep a share of the blocks, in their order; nothing is trained, and no weight that stays is changed.

    layers_kept: share of the blocks that stay, above 0, at most 1; rounded to whole blocks, at least one.
    by: "every_other": evenly spaced, the first and the last among them; "influence": those that change what goes
    through them most (``influence``), all scores taken from the model as it was (ShortGPT's one-shot removal).
    """

    layers_kept: float
    by: Literal["every_other", "influence"]

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with fewer blocks.

        Raises Unsupported for another share or criterion, and as ``surgery.keep_blocks`` does; SqueezeError where
        influence is asked for and there are no tokens.
        """
        if not 0 < self.layers_kept <= 1:
            raise Unsupported(f"layer_drop cannot keep a share of {self.layers_kept}; expected more than 0, at most 1")
        if self.by not in ("every_other", "influence"):
            raise Unsupported(f"layer_drop has no criterion {self.by!r}; expected 'every_other' or 'influence'")
        model, before = subject.model, len(architecture.blocks(subject.model))
        count = max(1, round(self.layers_kept * before))
        if self.by == "influence":
            kept = highest(influence(model, calibration.token_ids), count)
        else:
            kept = evenly_spaced(before, count)
        parameters = subject.claims.get("parameters", count_parameters(model))
        keep_blocks(model, kept)
        share = subject.claims.get("layers_kept", 1.0) * count / before
        return subject.claiming(layers_kept=share, parameters=parameters)


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
    if token_ids.numel() == 0:
        raise SqueezeError("influence needs text, found no tokens; name a calibration with a corpus, or by=every_other")
    blocks = architecture.blocks(model)
    cosines = torch.zeros(len(blocks), dtype=torch.float64)

    def note(place: int, _: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any], outputs: Any) -> None:
        before = inputs[0] if inputs else named["hidden_states"]
        after = outputs[0] if isinstance(outputs, tuple) else outputs
        cosines[place] += float(F.cosine_similarity(before.double(), after.double(), dim=-1).sum())

    handles = [
        block.register_forward_hook(partial(note, place), with_kwargs=True) for place, block in enumerate(blocks)
    ]
    try:
        for windows in torch.split(token_ids, max(TOKENS // token_ids.shape[1], 1)):
            architecture.base_model(model)(input_ids=windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return 1 - cosines / token_ids.numel()
