"""Quantize dynamically, as PyTorch does: int8 weights, activations quantized at each call, multiplied as integers.

Its loss comes from the activations, not from the weights. A call's whole input shares one scale, and in a language
model few channels are far larger than all others (the product within a gated feed-forward layer most of all), so that
the rest falls on few levels. Token perplexity of SmolLM2-135M-Instruct on 2,048 tokens of Wikipedia, windows of 512:

    float32                                        24.4
    int8 weights per channel, float activations    24.4
    8-bit activations, but float into down_proj    25.7
    8-bit activations, weights per channel         42.5    (per tensor: 45.2)
    7-bit activations, weights per channel         80.3    (per tensor: 89.9, what quantize_dynamic gives by default)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears, linear
from squeeze.layers.dynamic_int8 import DynamicInt8Linear, _check_activation_bits, quantized_weight
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration


@dataclass(frozen=True)
class TorchDynamic:
    """Quantize the blocks' linear layers by ``torch.ao.quantization.quantize_dynamic``; the rest computes in float32.

    per_channel: one weight scale per output row rather than one per matrix.
    activation_bits: 7, which is safe on every CPU and fixed in PyTorch's own layer, or 8, which needs a CPU whose
        integer products do not overflow in between (x86: VNNI).

    The head stays as it is: it shares its weight with the embedding in most small models.
    """

    per_channel: bool
    activation_bits: Literal[8, 7]

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject.

        Raises Unsupported off the CPU, and for activation bits that this CPU cannot do.
        """
        device = next(subject.model.parameters()).device.type
        if device != "cpu":
            raise Unsupported(f"torch_dynamic has no kernels for {device}; use device=cpu")
        _check_activation_bits(self.activation_bits)
        model = subject.model
        for name in float_linears(model):
            layer = model.get_submodule(name).float()
            weight, bias = architecture.weight(layer), architecture.bias(layer)
            quantized = quantized_weight(linear(weight.contiguous(), bias), self.per_channel)
            architecture.replace(model, name, DynamicInt8Linear.of(quantized, bias, self.activation_bits))
        model.float()
        return subject.claiming(bits=8, activation_bits=self.activation_bits)
