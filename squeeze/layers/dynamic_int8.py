"""Run a linear layer with PyTorch's own int8 kernels, activations quantized at each call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import linear


class DynamicInt8Linear(nn.Module):
    """Multiply as y = s_x s_w (q_x - z_x) q_w^T + b in integers; s_x and z_x from the range of each call's input.

    per_channel: one scale per output row, else one in all. activation_bits: of q_x, 7 or 8.

    Stored: ``codes`` (out_features, in_features) int8, ``scales`` (out_features or 1,) and ``bias`` (out_features,)
    float32.

    ``memory_real`` and ``compute_real``: weights stay int8 and are multiplied as int8. Results depend on what else is
    in the batch, since one scale serves it all.
    """

    memory_real = True
    compute_real = True

    def __init__(
        self, in_features: int, out_features: int, per_channel: bool, activation_bits: int, bias: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.per_channel, self.activation_bits = per_channel, activation_bits
        self.packed: Any = None
        self.codes: torch.Tensor | None
        self.scales: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("codes", torch.empty((out_features, in_features), dtype=torch.int8))
        self.register_buffer("scales", torch.empty(out_features if per_channel else 1))
        self.register_buffer("bias", torch.empty(out_features) if bias else None)

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None, activation_bits: int) -> DynamicInt8Linear:
        """Make the layer of a ``quantized_weight``: a qint8 tensor (out_features, in_features), zero points 0."""
        out_features, in_features = weight.shape
        per_channel = weight.qscheme() == torch.per_channel_affine
        scales = weight.q_per_channel_scales() if per_channel else torch.tensor([weight.q_scale()])
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, per_channel, activation_bits, bias is not None)
        layer.codes, layer.scales, layer.bias = weight.int_repr(), scales.float(), bias
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory."""
        return 8.0

    @property
    def opaque_bytes(self) -> int:
        """Count the bytes of the kernel's own copy of the codes, which no buffer shows."""
        return 0 if self.packed is None else self.in_features * self.out_features

    def prepare(self) -> None:
        """Hand the codes over to the kernel; from then on the layer only runs.

        Raises Unsupported where this CPU cannot do the activation bits.
        """
        _check_activation_bits(self.activation_bits)
        self.packed = self._pack()
        self.codes = None

    def dequantize(self) -> torch.Tensor:
        """Return the float weight, (out_features, in_features)."""
        with _quiet():
            return self._weight().dequantize()

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the format is our own, and no library reads it."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) float32 -> (..., out_features) float32."""
        packed = self._pack() if self.packed is None else self.packed
        return _multiply(inputs, packed, self.activation_bits)

    def _pack(self) -> Any:
        with _quiet():
            return torch.ops.quantized.linear_prepack(self._weight(), self.bias)

    def _weight(self) -> torch.Tensor:
        if self.codes is None:
            weight, _ = torch.ops.quantized.linear_unpack(self.packed)
            return weight  # type: ignore[no-any-return]
        if not self.per_channel:
            return torch._make_per_tensor_quantized_tensor(self.codes, self.scales.item(), 0)
        zeros = torch.zeros(self.out_features, dtype=torch.int64)
        return torch._make_per_channel_quantized_tensor(self.codes, self.scales.double(), zeros, 0)


def quantized_weight(layer: nn.Linear, per_channel: bool) -> torch.Tensor:
    """Return the qint8 weight that ``quantize_dynamic`` gives a float32 layer."""
    with _quiet():
        from torch.ao import quantization

        config = quantization.per_channel_dynamic_qconfig if per_channel else quantization.default_dynamic_qconfig
        converted = quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear: config})  # type: ignore[no-untyped-call]
        return converted[0].weight()  # type: ignore[no-any-return]


def _multiply(inputs: torch.Tensor, packed: Any, activation_bits: int) -> torch.Tensor:
    return torch.ops.quantized.linear_dynamic(inputs, packed, activation_bits == 7)  # type: ignore[no-any-return]


def _check_activation_bits(bits: int) -> None:
    if bits not in (7, 8):
        raise Unsupported(f"torch_dynamic cannot quantize activations to {bits} bits; expected 7 or 8")
    if bits == 8 and _overflows():
        raise Unsupported("8-bit activations overflow on this CPU (no VNNI); use activation_bits: 7")


@cache
def _overflows() -> bool:
    """Tell whether products of full-range codes saturate, as sums of two 16-bit products do before VNNI."""
    weight = torch.ones(16, 64)
    with _quiet():
        packed = torch.ops.quantized.linear_prepack(quantized_weight(linear(weight, None), per_channel=False), None)
    product = _multiply(torch.ones(1, 64), packed, activation_bits=8)
    return not torch.allclose(product, torch.full_like(product, 64), rtol=0.02)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyTorch, which announces at each call that quantized tensors will move to another package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
