"""Run a classifier as it is scored: texts of like length share a batch, padded and masked, or each is read alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from squeeze.probes.batching import row_dependent
from squeeze.probes.scoring import Row, batches, by_length


def is_dependent(model: nn.Module) -> bool:
    """Tell whether other texts of a call move a classifier's logits of one: it quantizes over all tokens of a call."""
    return row_dependent(model, lambda classifier, texts: class_logits(classifier, texts)[0])


def answers(model: nn.Module, texts: Sequence[Sequence[int]], token_budget: int) -> Tensor:
    """Return the logits that a classifier gives to each text, (texts, classes) float32 on the CPU.

    texts: token ids of each. token_budget: tokens of a batch, padding included; 0: each text alone.
    """
    rows = by_length([Row(tuple(ids), (), (number,)) for number, ids in enumerate(texts)])
    found = torch.cat([class_logits(model, [row.context for row in batch]) for batch in batches(rows, token_budget)])
    in_order = torch.empty_like(found)
    in_order[[row.owners[0] for row in rows]] = found
    return in_order


@torch.inference_mode()
def class_logits(model: nn.Module, texts: Sequence[Sequence[int]], least: int = 0) -> Tensor:
    """Return a classifier's logits for one batch of token ids, (texts, classes) float32 on the CPU: the scored forward.

    Texts are padded at their end to the longest, or to ``least`` tokens, and masked there.
    """
    device = next(model.parameters()).device
    rows = [torch.tensor(ids, device=device) for ids in texts]
    filler = getattr(model.config, "pad_token_id", None) or 0
    input_ids = pad_sequence(rows, batch_first=True, padding_value=filler)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    behind = (0, max(least - input_ids.shape[1], 0))
    logits: Tensor = model(input_ids=F.pad(input_ids, behind, value=filler), attention_mask=F.pad(mask, behind)).logits
    return logits.float().cpu()
