"""Run a linear layer in integers: int8 activations times int8 weights, summed in int32 and scaled once."""

from __future__ import annotations

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import dtype_name

LARGEST = 127  # of a symmetric int8 code; -128 stays unused, so that codes may be negated


class Int8Linear(nn.Module):
    """Multiply as y = s_x s_w (q_x - z_x) q_w^T + b, summing products in integers (Jacob et al. 2018, eq. 4 and 7).

    Weights have one scale per output row and no zero point. Activations are quantized by themselves, symmetrically, a
    scale for each token (z_x = 0; so a result depends on nothing else in the batch), or, if ``static``, all with the
    one stored scale and zero point; codes beyond int8 saturate.

    dtype: of inputs, bias and outputs ("bfloat16"); scales are float32.

    Stored: ``codes`` (out_features, in_features) int8, ``scales`` (out_features,) float32, ``bias`` (out_features,),
    and if static ``input_scale`` () float32 and ``input_zero`` () int32.

    ``memory_real`` and ``compute_real``: weights stay int8 and are multiplied as int8. For a 576 x 1536 matrix on two
    cores with VNNI, microseconds of the product alone, against bfloat16: 76 and 134 for one row of inputs, 827 and
    1,312 for 512; quantizing the inputs adds about 12 and 180.
    """

    memory_real = True
    compute_real = True

    def __init__(self, in_features: int, out_features: int, static: bool, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.static = in_features, out_features, static
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.codes: torch.Tensor
        self.scales: torch.Tensor
        self.bias: torch.Tensor | None
        self.input_scale: torch.Tensor | None
        self.input_zero: torch.Tensor | None
        self.register_buffer("codes", torch.empty((out_features, in_features), dtype=torch.int8))
        self.register_buffer("scales", torch.empty(out_features, dtype=torch.float32))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)
        self.register_buffer("input_scale", torch.empty((), dtype=torch.float32) if static else None)
        self.register_buffer("input_zero", torch.empty((), dtype=torch.int32) if static else None)
        self.sums: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        input_range: tuple[float, float] | None = None,
    ) -> Int8Linear:
        """Return the layer of a float weight (out_features, in_features), rounded to nearest.

        input_range: the lowest (at most 0) and highest (at least 0) input that has a code; None: each token's own.
        Raises Unsupported off the CPU, whose integer product it uses.
        """
        if weight.device.type != "cpu":
            raise Unsupported(f"int8 products have no kernel for {weight.device.type} here; use device=cpu")
        out_features, in_features = weight.shape
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            name = dtype_name(weight.dtype)
            layer = cls(in_features, out_features, input_range is not None, bias is not None, name)
        layer.codes, scales = symmetric_codes(weight)
        layer.scales, layer.bias = scales.squeeze(1), bias
        if input_range is not None:
            low, high = input_range
            scale = torch.tensor((high - low) / 255 or 1.0)
            layer.input_scale = scale
            layer.input_zero = (-128 - low / scale).round().to(torch.int32)
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory."""
        return 8 * self.codes.nbytes / (self.in_features * self.out_features)

    @property
    def opaque_bytes(self) -> int:
        """Count nothing: all that it holds lies in its buffers."""
        return 0

    def prepare(self) -> None:
        """Sum each row of codes once, for the zero point's correction; from then on the layer only runs."""
        self.sums = self._sums() if self.static else None

    def dequantize(self) -> torch.Tensor:
        """Return the float weight, (out_features, in_features)."""
        return (self.codes * self.scales[:, None]).to(self.dtype)

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the format is our own, and no library reads it."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        rows = inputs.reshape(-1, self.in_features)
        if self.input_scale is None or self.input_zero is None:
            codes, scales = symmetric_codes(rows)
            sums = torch._int_mm(codes, self.codes.T)
        else:
            scales = self.input_scale
            codes = _affine_codes(rows, scales, self.input_zero)
            sums = torch._int_mm(codes, self.codes.T)
            sums -= self.input_zero * (self._sums() if self.sums is None else self.sums)  # eq. 7
        outputs = sums.to(torch.float32).mul_(scales).mul_(self.scales)
        outputs = outputs if self.bias is None else outputs.add_(self.bias)
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)

    def _sums(self) -> torch.Tensor:
        return self.codes.sum(dim=1, dtype=torch.int32)


def symmetric_codes(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row by its largest magnitude: (rows, n) floats -> (rows, n) int8, and scales (rows, 1) float32."""
    values = rows.to(torch.float32, copy=True)
    scales = torch.maximum(values.amax(dim=1, keepdim=True), -values.amin(dim=1, keepdim=True)) / LARGEST
    scales = torch.where(scales == 0, 1, scales)
    return values.div_(scales).round_().to(torch.int8), scales


def _affine_codes(rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    codes = rows.to(torch.float32, copy=True).div_(scale).round_().add_(zero)
    return codes.clamp_(-128, 127).to(torch.int8)
