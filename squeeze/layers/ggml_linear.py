"""Store a linear layer's weights as the blocks of ggml that llama.cpp's own quantizer has made, bit for bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.layers.contract import dtype_name


class GgmlLinear(nn.Module):
    """Multiply as y = x W^T + b, W in blocks of one of ggml's types.

    Given integers it is an embedding, and gives the rows of W that they number: so one layer serves as a model's
    embedding and as the head that is tied to it.

    row_bytes: of an output row's blocks. kind: ggml's name of the type, such as ``Q4_K``. dtype: of inputs, bias and
    outputs ("bfloat16").

    Stored: ``blocks`` (out_features, row_bytes) uint8, ``bias`` (out_features,).

    ``memory_real`` and ``compute_real`` are False: here the weight is widened, by the ``gguf`` package, and runs dense.
    What is small while running, and multiplied in few bits, are the same blocks in llama.cpp (``runtime=llama_cpp``).
    """

    memory_real = False
    compute_real = False

    def __init__(self, in_features: int, out_features: int, row_bytes: int, kind: str, bias: bool, dtype: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.row_bytes, self.kind = in_features, out_features, row_bytes, kind
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.blocks: Tensor | None
        self.bias: Tensor | None
        self.weight: Tensor | None
        self.register_buffer("blocks", torch.empty((out_features, row_bytes), dtype=torch.uint8))
        self.register_buffer("bias", torch.empty(out_features, dtype=self.dtype) if bias else None)
        self.register_buffer("weight", None, persistent=False)

    @classmethod
    def of(cls, kind: str, blocks: Tensor, in_features: int, bias: Tensor | None, dtype: torch.dtype) -> GgmlLinear:
        """Return the layer of blocks (out_features, bytes of a row) uint8; dtype: what it computes in."""
        out_features, row_bytes = blocks.shape
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            layer = cls(in_features, out_features, row_bytes, kind, bias is not None, dtype_name(dtype))
        layer.blocks, layer.bias = blocks, bias
        return layer

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight takes in memory."""
        held = self.blocks if self.weight is None else self.weight
        assert held is not None
        return 8 * held.nbytes / (self.in_features * self.out_features)

    @property
    def opaque_bytes(self) -> int:
        """Count nothing: all that it holds lies in its buffers."""
        return 0

    def prepare(self) -> None:
        """Widen the weight, once; from then on the layer only runs."""
        self.weight = self.dequantize()
        self.blocks = None

    def dequantize(self) -> Tensor:
        """Return the dense weight, (out_features, in_features)."""
        return self._rows(slice(None)) if self.weight is None else self.weight

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: no library reads such blocks out of safetensors."""
        return {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply floats (..., in_features) -> (..., out_features); look up integers (...) -> (..., in_features)."""
        if inputs.is_floating_point():
            return F.linear(inputs, self.dequantize(), self.bias)
        flat = inputs.flatten()
        rows = self._rows(flat) if self.weight is None else self.weight[flat]
        return rows.reshape(*inputs.shape, self.in_features)

    def _rows(self, numbers: slice | Tensor) -> Tensor:
        import gguf

        assert self.blocks is not None
        blocks = self.blocks[numbers]
        values = gguf.quants.dequantize(blocks.cpu().numpy(), gguf.GGMLQuantizationType[self.kind])
        return torch.from_numpy(values).to(blocks.device, self.dtype)
