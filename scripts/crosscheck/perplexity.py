"""Compute token losses by a plain loop that uses nothing of squeeze: the same for every model, whoever quantized it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


@torch.no_grad()
def token_losses(model: nn.Module, windows: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return -log p in nats of each token but a window's first, given those before it: (windows, window - 1).

    model: maps (1, window) token ids to an object with ``logits`` (1, window, vocabulary). windows: (windows, window)
    int64. One window at a time, so that nothing depends on a batch; the log-softmax is in float32 whatever the model's
    dtype.
    """
    losses = []
    for window in windows:
        logits = model(input_ids=window[None]).logits[0, :-1].float()
        of_targets = logits.log_softmax(dim=-1).gather(1, window[1:, None])
        losses.append(-of_targets[:, 0].cpu().numpy())
    return np.stack(losses)


def perplexity(losses: npt.NDArray[np.float32]) -> float:
    """Return the exponential of the mean loss over all tokens."""
    return float(np.exp(losses.mean(dtype=np.float64)))
