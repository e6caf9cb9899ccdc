"""Quantize to static int8: measure ranges of the activations beforehand, so that running computes no scale.

Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference" (arXiv:1712.05877), without its training: r = s (q - z) (eq. 1) for both
factors of a product, with sum (q_x - z_x) q_w = sum q_x q_w - z_x sum q_w (eq. 7, weights having no zero point).
"""

from __future__ import annotations

from dataclasses import dataclass

from squeeze.layers.contract import float_linears
from squeeze.layers.int8 import Int8Linear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration


@dataclass(frozen=True)
class StaticInt8:
    """Quantize all linear layers of the blocks to W8A8; embeddings, head and norms stay in floating point.

    A layer's inputs have one scale and one zero point, from their extremes over the calibration text; weights have a
    scale per output row. Extremes, not percentiles: a language model needs its few very large activations.
    """

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject. Raises Unsupported off the CPU."""
        float_linears(subject.model)
        for block_name, block, inputs in calibration.input_statistics(subject.model):
            for name, statistics in inputs.items():
                layer = block.get_submodule(name)
                input_range = float(statistics.low.min()), float(statistics.high.max())
                quantized = Int8Linear.of(architecture.weight(layer), architecture.bias(layer), input_range)
                architecture.replace(subject.model, f"{block_name}.{name}", quantized)
        return subject.claiming(bits=8, activation_bits=8)
