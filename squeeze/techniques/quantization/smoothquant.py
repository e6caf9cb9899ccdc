"""Move the activations' outliers into the weights, then quantize both to int8 (SmoothQuant).

Xiao, Lin, Seznec, Wu, Demouth, Han 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models" (arXiv:2211.10438).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears
from squeeze.layers.int8 import Int8Linear
from squeeze.models import architecture
from squeeze.models.folding import folds
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration


@dataclass(frozen=True)
class SmoothQuant:
    """Quantize all linear layers of the blocks to W8A8; embeddings, head and norms stay in floating point.

    alpha: the migration strength, how much of the difficulty goes from activations to weights, in [0, 1].

    Weights have a scale per output row, activations one per token, found as they come (the paper's O1, there with one
    scale per weight matrix). Y = (X diag(s)^-1) (diag(s) W) (eq. 3): s goes into the norm or layer before, wherever
    that is exact (see ``folding``), so nothing more is stored; the paper smooths the inputs that norms produce.
    ``claims["unscaled"]`` names the layers that no fold reaches.
    """

    alpha: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported for an alpha outside [0, 1], an architecture that cannot be folded, and off the CPU.
        """
        if not 0 <= self.alpha <= 1:
            raise Unsupported(f"smoothquant's alpha is {self.alpha}; expected 0 to 1")
        float_linears(subject.model)  # which makes dense what was pruned: folds look at the weights
        exact = folds(subject.model)
        unscaled: set[str] = set()
        for block_name, block, inputs in calibration.input_statistics(subject.model):
            for fold in exact:
                weights = [architecture.weight(block.get_submodule(name)) for name in fold.consumers]
                fold.apply(block, self.scales(weights, inputs[fold.consumers[0]].max_abs))
            unscaled |= set(inputs) - {name for fold in exact for name in fold.consumers}
            for name in inputs:
                layer = block.get_submodule(name)
                quantized = Int8Linear.of(architecture.weight(layer), architecture.bias(layer))
                architecture.replace(subject.model, f"{block_name}.{name}", quantized)
        return subject.claiming(bits=8, activation_bits=8, unscaled=sorted(unscaled))

    def scales(self, weights: Sequence[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return s_j = max|X_j|^alpha / max|W_j|^(1-alpha) (eq. 4), (in_features,); 1 for a channel of zeros.

        weights: (out_features, in_features) of all layers that read these inputs. inputs: (in_features,), max|X_j|.
        """
        largest = torch.stack([weight.float().abs().amax(dim=0) for weight in weights]).amax(dim=0)
        scales = inputs**self.alpha / largest ** (1 - self.alpha)
        return torch.where((inputs > 0) & (largest > 0), scales, 1.0)
