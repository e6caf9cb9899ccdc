"""Leave small activations out (TEAL): what is near zero in a layer's input becomes zero, and its columns go unread.

Liu, Ponnusamy, Cai, Guo, Kim, Athiwaratkun 2024, "Training-Free Activation Sparsity in Large Language Models"
(arXiv:2408.14690), section 4: for a share p, t is the threshold with P(|x| <= t) = p over the inputs of a layer, and

    s_t(x) = 0 where |x| <= t, x elsewhere;    y = W s_t(x).

Thresholds are those of the uncompressed activations, p is the same in all layers (the paper also searches for shares by
block). The paper leaves half of a prompt dense; here every token has the thresholds, so that text is scored as it is
decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import is_compressed, matrices
from squeeze.layers.lora import LoraLinear, bias_of, features
from squeeze.layers.thresholded import ColumnsLinear, Thresholded
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration

TOKENS = 2048  # that go through the model at once
MAGNITUDES = 2**15  # that bfloat16 tells apart, infinity and what is no number among them
OVER = 2**16  # what a magnitude's bits in float32 are divided by, to be those in bfloat16


@dataclass(frozen=True)
class TEAL:
    """Give the linear layers of the blocks thresholds for their inputs; weights stay as they are, codes among them.

    sparsity: p, share of the entries of each layer's input that become zero, in [0, 1).
    """

    sparsity: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with thresholds.

        Raises Unsupported for a sparsity outside [0, 1), for a library's own layers, and for adapters; SqueezeError
        without text.
        """
        if not 0 <= self.sparsity < 1:
            raise Unsupported(f"teal cannot zero a share of {self.sparsity}; expected 0 <= sparsity < 1")
        model = subject.model
        for name, layer in matrices(model):
            _check(name, layer)
        if calibration.token_ids.numel() == 0:
            raise SqueezeError("teal has no tokens, expected at least one window; name a calibration with a corpus")
        dtype = architecture.dtype(model)
        for name, threshold in thresholds(model, calibration.token_ids, self.sparsity).items():
            layer = model.get_submodule(name)
            architecture.replace(model, name, Thresholded.of(_base(layer), features(layer), threshold, dtype))
        return subject.claiming(input_sparsity=self.sparsity)


def thresholds(model: nn.Module, token_ids: torch.Tensor, share: float) -> dict[str, float]:
    """Return the threshold of each matrix within the blocks by its full name, the first of several.

    Names, not layers: a copy takes the place of a Conv1D, which is then held by nobody. token_ids: (samples, window)
    int64. share: of the entries that lie at or below the threshold.
    """
    first: dict[nn.Module, str] = {}
    for name, layer in matrices(model):
        first.setdefault(layer, name)
    seen = magnitudes(model, list(first), token_ids)
    return {name: quantile(seen[layer], share) for layer, name in first.items()}


@torch.no_grad()
def magnitudes(model: nn.Module, layers: list[nn.Module], token_ids: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
    """Return how often each magnitude occurs in the inputs of each layer, (32768,) int64, by its bits in bfloat16.

    token_ids: (samples, window) int64. Magnitudes of more digits are cut off to bfloat16's.
    """
    counts = {layer: torch.zeros(MAGNITUDES, dtype=torch.int64, device=token_ids.device) for layer in layers}

    def count(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        bits = arguments[0].abs().float().view(torch.int32) // OVER
        counts[layer] += torch.bincount(bits.flatten(), minlength=MAGNITUDES)

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        for windows in torch.split(token_ids, max(1, TOKENS // token_ids.shape[1])):
            architecture.base_model(model)(input_ids=windows, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def quantile(counts: torch.Tensor, share: float) -> float:
    """Return the threshold at or below which ``share`` of the magnitudes lie, or just more; at 0 lies what is zero.

    counts: of ``magnitudes``. Of those that were cut off it is the middle, which in bfloat16 is what they were cut to.
    """
    total = int(counts.sum())
    place = int((counts.cumsum(0) < share * total).sum())
    if place == 0:  # nothing is asked for, or zeros are enough, or no token reached the layer
        return 0.0
    bits = torch.tensor(place * OVER + OVER // 2 - 1, dtype=torch.int32)
    return float(bits.view(torch.float32))


def _check(name: str, layer: nn.Module) -> None:
    if isinstance(layer, LoraLinear):
        raise Unsupported(f"{name} has an adapter; expected a layer without one: merge it")
    if not is_compressed(layer) and not architecture.weight(layer).is_floating_point():
        raise Unsupported(f"{name} is a {type(layer).__name__}, a library's own; expected floats, or codes of ours")


def _base(layer: nn.Module) -> nn.Module:
    ours: bool = is_compressed(layer)
    return layer if ours else ColumnsLinear.of(architecture.weight(layer), bias_of(layer))
