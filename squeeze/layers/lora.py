"""Keep a low-rank change beside the linear layer that it changes, whatever that layer stores its weight in.

LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3):

    y = W x + s B A x,    s = alpha / r, or alpha / sqrt(r)   (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)

DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5) learns the lengths of the output rows apart from their directions:

    y = m / ||W + s B A|| (W + s B A) x,    with one length m and one norm for each output row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.layers.contract import dtype_name, is_compressed, linear
from squeeze.models import architecture

# Of the base's multiplications, A and B may do so much in floats where a layer still counts as one of few bits: what
# ``probes.arithmetic`` (LEFT) allows as well.
MOST_FLOATS = 0.25


class LoraLinear(nn.Module):
    """Multiply as y = W x + b + s B A x, or DoRA's form of it; W and b are those of ``base``, a layer of any kind.

    rank: r. alpha, rslora: they make s. dora: whether output rows have lengths of their own. dtype: of inputs, bias and
    outputs ("bfloat16"). The product with A and B is made in float32, as peft makes it.

    Stored: what the base stores; ``lora_A`` (rank, in_features), ``lora_B`` (out_features, rank) and, if dora,
    ``magnitude`` (out_features,) float32: rounded, it would scale whole rows. An artifact keeps these three in a folder
    of their own (``artifacts/adapter.py``).

    ``memory_real``: the base's. ``compute_real``: the base's, where A and B are small. ``running_bits``: the base's and
    those of A and B: they too are read for every token.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        rslora: bool,
        dora: bool,
        bias: bool,
        dtype: str,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.alpha, self.rslora, self.dora = alpha, rslora, dora
        self.dtype: torch.dtype = getattr(torch, dtype)
        own = torch.empty(out_features, dtype=self.dtype) if bias else None
        self.base: nn.Module = linear(torch.empty((out_features, in_features), dtype=self.dtype), own)
        self.lora_A = _frozen(torch.empty((rank, in_features), dtype=self.dtype))
        self.lora_B = _frozen(torch.empty((out_features, rank), dtype=self.dtype))
        self.magnitude: nn.Parameter | None
        self.register_parameter("magnitude", _frozen(torch.empty(out_features)) if dora else None)
        self.gain: torch.Tensor | None
        self.register_buffer("gain", None, persistent=False)

    @classmethod
    def of(
        cls,
        base: nn.Module,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        magnitude: torch.Tensor | None = None,
        *,
        alpha: float,
        rslora: bool = False,
        dtype: torch.dtype,
    ) -> LoraLinear:
        """Return the layer of a base and of tensors (rank, in_features), (out_features, rank) and (out_features,).

        None of them is copied. dtype: of the base's inputs and outputs. Raises ValueError for shapes that do not fit,
        and for a base that is no linear layer.
        """
        out_features, in_features = features(base)
        found = [tuple(tensor.shape) for tensor in (lora_a, lora_b, magnitude) if tensor is not None]
        rank = lora_a.shape[0] if lora_a.ndim == 2 else 0
        expected = [(rank, in_features), (out_features, rank), (out_features,)][: len(found)]
        if found != expected or rank < 1:
            raise ValueError(f"an adapter of shapes {found} does not fit a layer of {out_features} x {in_features}")
        with torch.device("meta"):  # the tensors that follow take the place of the constructor's
            has_bias = bias_of(base) is not None
            dora = magnitude is not None
            layer = cls(in_features, out_features, rank, alpha, rslora, dora, has_bias, dtype_name(dtype))
        layer.base = base
        layer.lora_A, layer.lora_B = _frozen(lora_a), _frozen(lora_b)
        layer.magnitude = None if magnitude is None else _frozen(magnitude)
        return layer

    @classmethod
    def starting(
        cls, base: nn.Module, rank: int, alpha: float, dtype: torch.dtype, generator: torch.Generator
    ) -> LoraLinear:
        """Return an adapter in float32 that changes nothing yet: A drawn as ``starting_pair`` does, B zero."""
        device = next(iter((*base.parameters(), *base.buffers()))).device
        pair = starting_pair(features(base), rank, generator)
        return cls.of(base, *(tensor.to(device) for tensor in pair), alpha=alpha, dtype=dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the base's bias, (out_features,), or None."""
        return bias_of(self.base)

    @property
    def scaling(self) -> float:
        """Return s, by which B A is multiplied."""
        return scaling(self.alpha, self.rank, rslora=self.rslora)

    @property
    def memory_real(self) -> bool:
        """Tell whether the base is small while running."""
        if is_compressed(self.base):
            return self.base.memory_real
        return not architecture.weight(self.base).is_floating_point()

    @property
    def compute_real(self) -> bool:
        """Tell whether the base multiplies in few bits, and A and B, in floats, at most a quarter as often."""
        few = self.rank * (self.in_features + self.out_features) <= MOST_FLOATS * self.in_features * self.out_features
        return is_compressed(self.base) and self.base.compute_real and few

    @property
    def running_bits(self) -> float:
        """Return the bits that a weight takes in memory: its code in the base, and its share of A and B."""
        weights = self.in_features * self.out_features
        beside = 8 * (self.lora_A.nbytes + self.lora_B.nbytes) / weights
        if is_compressed(self.base):
            return self.base.running_bits + beside
        return 8 * architecture.weight(self.base).nbytes / weights + beside

    @property
    def opaque_bytes(self) -> int:
        """Count nothing: the base counts its own."""
        return 0

    def prepare(self) -> None:
        """Lay the base out for its kernel, and hold A and B in what they are multiplied in."""
        if self.magnitude is not None:
            self.gain = self._gain(self._sum())
        if is_compressed(self.base):
            self.base.prepare()
        self.lora_A.data, self.lora_B.data = self.lora_A.data.float(), self.lora_B.data.float()

    def dequantize(self) -> torch.Tensor:
        """Return the matrix that base and adapter are together, (out_features, in_features)."""
        matrix = self._sum()
        return (matrix if self.magnitude is None else self._gain(matrix)[:, None] * matrix).to(self.dtype)

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        """Return nothing: the base is stored in its own place, as if there were no adapter."""
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        outputs: torch.Tensor = self.base(inputs)
        change = F.linear(F.linear(inputs.float(), self.lora_A.float()), self.lora_B.float()) * self.scaling
        if self.magnitude is None:
            return (outputs + change).to(outputs.dtype)
        gain = self._gain(self._sum()) if self.gain is None else self.gain
        plain = outputs if self.bias is None else outputs - self.bias
        return (outputs + (gain - 1) * plain + gain * change).to(outputs.dtype)

    def _sum(self) -> torch.Tensor:
        """Return W + s B A, (out_features, in_features) float32."""
        base = matrix_of(self.base, self.dtype).float()
        return base + self.scaling * (self.lora_B.float() @ self.lora_A.float())

    def _gain(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return m / ||W + s B A||, (out_features,) float32."""
        assert self.magnitude is not None
        gain: torch.Tensor = self.magnitude.float() / torch.linalg.norm(matrix, dim=1)
        return gain


def scaling(alpha: float, rank: int, *, rslora: bool) -> float:
    """Return s: alpha / r or, in rsLoRA, alpha / sqrt(r)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def starting_pair(shape: tuple[int, int], rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A, uniform over +-1 / sqrt(in_features) as peft draws it, and B, zero, in float32.

    shape: (out_features, in_features). generator: of the CPU, for A.
    """
    out_features, in_features = shape
    uniform = torch.rand((rank, in_features), generator=generator)
    return (2 * uniform - 1) / math.sqrt(in_features), torch.zeros((out_features, rank))


def features(layer: nn.Module) -> tuple[int, int]:
    """Return (out_features, in_features) of a linear layer, compressed, a library's or plain. Raises ValueError."""
    if isinstance(layer, nn.Linear) or is_compressed(layer):
        return layer.out_features, layer.in_features
    if architecture.linears(layer).get("") is not layer:
        raise ValueError(f"a {type(layer).__name__} is no linear layer")
    out_features, in_features = architecture.weight(layer).shape
    return out_features, in_features


def bias_of(layer: nn.Module) -> torch.Tensor | None:
    """Return the bias of a linear layer of any kind, (out_features,), or None."""
    return layer.bias if is_compressed(layer) else architecture.bias(layer)


@torch.no_grad()
def matrix_of(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """Return the matrix that a linear layer of any kind multiplies with, (out_features, in_features).

    A library's packed layer is sent unit vectors in ``dtype``, whatever it stores.
    """
    if is_compressed(layer):
        return layer.dequantize()
    weight = architecture.weight(layer)
    if weight.is_floating_point():
        return weight
    _, in_features = features(layer)
    units = torch.eye(in_features, dtype=dtype, device=weight.device)
    return (layer(units) - layer(torch.zeros_like(units[:1]))).T  # type: ignore[no-any-return]


@contextmanager
def set_aside(model: nn.Module) -> Iterator[dict[str, LoraLinear]]:
    """Put bases in the places of their adapters within the body; yield the adapters by full name.

    One that stands in several places is yielded once: it stands wherever its base does.
    """
    adapters = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    for name, adapter in adapters.items():
        architecture.replace(model, name, adapter.base)
    try:
        yield adapters
    finally:
        for name, adapter in adapters.items():
            architecture.replace(model, name, adapter)


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
