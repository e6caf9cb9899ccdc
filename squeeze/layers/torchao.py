"""Run linear layers whose weights are torchao's tensors: stored in torchao's format, multiplied by torchao.

The stored parts have the names and layouts of torchao's safetensors format, and ``header`` describes them in the file
as torchao's reader wants it, so that plain transformers loads the artifact's folder. (Not a GPT-2: torchao knows
``nn.Linear`` only, while these layers stand in for ``Conv1D`` too.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.layers.contract import dtype_name
from squeeze.layers.packing import pack, unpack


class Int8TensorLinear(nn.Module):
    """Multiply as y = x W^T + b, W a torchao Int8Tensor. dynamic: round activations to int8 too, one scale a token.

    dtype: of inputs, bias and outputs ("bfloat16").

    Stored: ``_weight_qdata`` (out_features, in_features) int8, ``_weight_scale`` (out_features, 1) float32, ``bias``
    (out_features,).

    ``memory_real``: weights stay int8 while running. ``compute_real`` if dynamic: ``torch._int_mm``; otherwise each
    call widens the layer's whole weight, and multiplies in floating point.
    """

    memory_real = True

    def __init__(self, in_features: int, out_features: int, dynamic: bool, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dynamic = in_features, out_features, dynamic
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.tensor: torch.Tensor | None = None
        self._weight_qdata: torch.Tensor
        self._weight_scale: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("_weight_qdata", torch.empty((out_features, in_features), dtype=torch.int8))
        self.register_buffer("_weight_scale", torch.empty((out_features, 1)))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)

    @classmethod
    def of(cls, weight: Any, bias: torch.Tensor | None, dynamic: bool) -> Int8TensorLinear:
        """Return the layer of a torchao Int8Tensor, (out_features, in_features)."""
        out_features, in_features = weight.shape
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, dynamic, bias is not None, dtype_name(weight.dtype))
        layer._weight_qdata, layer._weight_scale, layer.bias = weight.qdata, weight.scale, bias
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory."""
        return 8 * self._weight_qdata.nbytes / (self.in_features * self.out_features)

    @property
    def opaque_bytes(self) -> int:
        """Count nothing: all that it holds lies in its buffers."""
        return 0

    @property
    def compute_real(self) -> bool:
        """Tell whether integers are multiplied: with activations that are rounded, too."""
        return self.dynamic

    def stored(self) -> torch.Tensor:
        """Return the torchao tensor whose parts are stored."""
        from torchao.quantization import Int8Tensor, PerRow
        from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

        activations = QuantizeTensorToInt8Kwargs(PerRow()) if self.dynamic else None
        block = [1, self.in_features]
        weight: torch.Tensor = Int8Tensor(
            self._weight_qdata, self._weight_scale, block, self.dtype, act_quant_kwargs=activations
        )
        return weight

    def prepare(self) -> None:
        """Make the torchao tensor once, over the stored parts; from then on the layer only runs."""
        self.tensor = self.stored()

    def dequantize(self) -> torch.Tensor:
        """Return the float weight, (out_features, in_features)."""
        return self.stored().dequantize()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        return F.linear(inputs, self.stored() if self.tensor is None else self.tensor, self.bias)

    @staticmethod
    def header(model: nn.Module) -> dict[str, str]:
        """Return what torchao's reader wants of all such layers of a model."""
        return _header({name: layer for name, layer in model.named_modules() if isinstance(layer, Int8TensorLinear)})


class Int4TensorLinear(nn.Module):
    """Multiply as y = x W^T + b, W = codes * scale + zero, codes from -8 to 7; run as torchao's tensor for this CPU.

    Which byte holds which code in that tensor differs from CPU to CPU (AVX-512, AVX2, others), and nothing in it says
    so. What is stored is therefore torchao's plain form, an Int4Tensor, which is laid out when it has been loaded.

    group_size: weights of a row that share a scale and a zero. dtype: of scales, inputs, bias and outputs.

    Stored: ``_weight_qdata`` (out_features, in_features / 2) int8, the first of two codes in the low bits,
    ``_weight_scale`` and ``_weight_zero_point`` (groups, out_features), ``bias`` (out_features,).

    ``memory_real``: weights stay in 4 bits while running. ``compute_real`` is False: the kernel,
    ``_weight_int4pack_mm_for_cpu``, multiplies in floating point.
    """

    memory_real = True
    compute_real = False

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.tensor: Any = None
        grid = (in_features // group_size, out_features)
        self._weight_qdata: torch.Tensor | None
        self._weight_scale: torch.Tensor | None
        self._weight_zero_point: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.register_buffer("_weight_qdata", torch.empty((out_features, in_features // 2), dtype=torch.int8))
        self.register_buffer("_weight_scale", torch.empty(grid, dtype=self.dtype))
        self.register_buffer("_weight_zero_point", torch.empty(grid, dtype=self.dtype))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)

    @classmethod
    def of(cls, weight: Any, bias: torch.Tensor | None) -> Int4TensorLinear:
        """Return the layer of a torchao Int4OpaqueTensor, (out_features, in_features)."""
        out_features, in_features = weight.shape
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, weight.block_size[1], bias is not None, dtype_name(weight.dtype))
        layer._weight_qdata = pack((_opaque_codes(weight) & 15).to(torch.uint8), bits=4).view(torch.int8)
        scale, zero = weight.scale_and_zero.unbind(-1)
        layer._weight_scale, layer._weight_zero_point, layer.bias = scale.contiguous(), zero.contiguous(), bias
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight's code takes in memory."""
        codes: Any = self._weight_qdata if self.tensor is None else self.tensor.qdata
        return float(8 * codes.nbytes / (self.in_features * self.out_features))

    @property
    def opaque_bytes(self) -> int:
        """Count the bytes of torchao's tensor for this CPU, which no buffer shows."""
        return 0 if self.tensor is None else self.tensor.qdata.nbytes + self.tensor.scale_and_zero.nbytes

    def stored(self) -> torch.Tensor:
        """Return the torchao tensor whose parts are stored."""
        from torchao.quantization import Int4Tensor

        block, shape = [1, self.group_size], torch.Size((self.out_features, self.in_features))
        weight: torch.Tensor = Int4Tensor(self._weight_qdata, self._weight_scale, self._weight_zero_point, block, shape)
        return weight

    def prepare(self) -> None:
        """Lay the codes out for this CPU, as torchao would have; from then on the layer only runs."""
        from torchao.prototype.quantization.int4 import Int4OpaqueTensor

        assert self._weight_scale is not None
        assert self._weight_zero_point is not None
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self._codes().int() + 8, 1)
        grid = torch.stack([self._weight_scale, self._weight_zero_point], dim=-1)
        shape = torch.Size((self.out_features, self.in_features))
        self.tensor = Int4OpaqueTensor(codes, grid, [1, self.group_size], shape)
        self._weight_qdata = self._weight_scale = self._weight_zero_point = None

    def dequantize(self) -> torch.Tensor:
        """Return the float weight, (out_features, in_features), before ``prepare``."""
        assert self._weight_scale is not None
        assert self._weight_zero_point is not None
        groups = self._codes().to(self.dtype).reshape(self.out_features, -1, self.group_size)
        return (groups * self._weight_scale.T[:, :, None] + self._weight_zero_point.T[:, :, None]).flatten(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        return F.linear(inputs, self.dequantize() if self.tensor is None else self.tensor, self.bias)

    @staticmethod
    def header(model: nn.Module) -> dict[str, str]:
        """Return what torchao's reader wants of all such layers of a model."""
        return _header({name: layer for name, layer in model.named_modules() if isinstance(layer, Int4TensorLinear)})

    def _codes(self) -> torch.Tensor:
        assert self._weight_qdata is not None
        nibbles = unpack(self._weight_qdata.view(torch.uint8), 4, self.in_features)
        return (nibbles ^ 8).view(torch.int8) - 8  # from 4 bits of two's complement


def _opaque_codes(weight: Any) -> torch.Tensor:
    """Return the codes of an Int4OpaqueTensor, in whatever order they lie: (out_features, in_features) int8, -8 to 7.

    Its own product with unit vectors shows them, all scales set to 1 and zeros to 0.
    """
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor

    grid = torch.tensor([1, 0], dtype=torch.bfloat16).expand(weight.scale_and_zero.shape).contiguous()
    plain = Int4OpaqueTensor(weight.qdata, grid, weight.block_size, weight.shape)
    return F.linear(torch.eye(weight.shape[1], dtype=torch.bfloat16), plain).T.to(torch.int8)


def _header(layers: dict[str, Any]) -> dict[str, str]:
    """Return what torchao's reader wants in the file's header: each weight's class, attributes and parts."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    _, header = flatten_tensor_state_dict({f"{name}.weight": layer.stored() for name, layer in layers.items()})
    return header  # type: ignore[no-any-return]
