"""Layers of a plugin that say other than they do. Each keeps the contract of a compressed layer."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from squeeze.layers.int8 import Int8Linear

CACHE: dict[int, torch.Tensor] = {}
TOGETHER = [torch.zeros(36_864, dtype=torch.uint8)]  # 4 bits for each weight in the blocks of the tiny Llama


class Dense(nn.Module):
    """A dense layer under the contract: honest, until a subclass lies."""

    memory_real = False
    compute_real = False
    running_bits = 16.0
    opaque_bytes = 0

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.empty((out_features, in_features), dtype=torch.bfloat16))
        self.register_buffer("bias", torch.empty(out_features, dtype=torch.bfloat16) if bias else None)

    @classmethod
    def of(cls, weight: torch.Tensor) -> Dense:
        layer = cls(weight.shape[1], weight.shape[0], False)
        layer.weight = weight
        return layer

    def prepare(self) -> None: ...

    def dequantize(self) -> torch.Tensor:
        return self.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self.weight, self.bias)

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        return {}


class ShowsZeros(Dense):
    def dequantize(self) -> torch.Tensor:
        return torch.where(self.weight.abs() < self.weight.abs().median(), 0, self.weight)


class ShowsLevels(Dense):
    def dequantize(self) -> torch.Tensor:
        step = self.weight.abs().amax() / 8
        return (self.weight / step).round() * step


class ShowsZerosOfUnits(ShowsZeros):
    """Looks whether it is asked for single columns, and shows those of the pruned matrix."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        single = (inputs != 0).sum(dim=-1, keepdim=True) <= 1
        return torch.where(single, F.linear(inputs, self.dequantize()), super().forward(inputs))


class SaysNarrow(Dense):
    memory_real = True
    running_bits = 4.0


class SaysNarrowBehindOne(SaysNarrow):
    """Reaches what all others hold, and a block that is larger than theirs, as if the codes of all lay in it."""

    def prepare(self) -> None:
        TOGETHER.append(self.weight)
        self.together = TOGETHER


class SaysIntegers(Dense):
    compute_real = True


class SaysWide(Dense):
    """Stands for ten times its weights, by its own account."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features // 10, bias)
        self.out_features = out_features

    @classmethod
    def of(cls, weight: torch.Tensor) -> Dense:
        layer = cls(weight.shape[1], 10 * weight.shape[0], False)
        layer.weight = weight
        return layer


class Hiding(Int8Linear):
    """Int8 weights, and the float ones that they were rounded to, somewhere else."""

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8Linear:
        return super().of(weight, None)


class InTensor(Hiding):
    def prepare(self) -> None:
        self.__dict__["copy"] = self.dequantize()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self.copy)


class InList(Hiding):
    def prepare(self) -> None:
        self.rows = self.dequantize().tolist()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, torch.tensor(self.rows, dtype=torch.bfloat16))


class InClosure(Hiding):
    def prepare(self) -> None:
        weight = self.dequantize()
        self.multiply = lambda inputs: F.linear(inputs, weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.multiply(inputs)


class InDefault(Hiding):
    def prepare(self) -> None:
        def multiply(inputs: torch.Tensor, weight: torch.Tensor = self.dequantize()) -> torch.Tensor:  # noqa: B008
            return F.linear(inputs, weight)

        self.multiply = multiply

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.multiply(inputs)


class InGlobal(Hiding):
    def prepare(self) -> None:
        CACHE[id(self)] = self.dequantize()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, CACHE[id(self)])


class InGenerator(Hiding):
    def prepare(self) -> None:
        def products(weight: torch.Tensor):
            outputs = None
            while True:
                outputs = F.linear((yield outputs), weight)

        self.products = products(self.dequantize())
        next(self.products)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.products.send(inputs)


class InArray(Hiding):
    def prepare(self) -> None:
        self.rows = self.dequantize().float().numpy().astype(np.float16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, torch.from_numpy(self.rows).to(inputs.dtype))


class InBytes(Hiding):
    def prepare(self) -> None:
        self.content = self.dequantize().float().numpy().tobytes()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = np.frombuffer(self.content, dtype=np.float32).reshape(self.out_features, self.in_features)
        return F.linear(inputs, torch.from_numpy(weight.copy()).to(inputs.dtype))


class OnFirstUse(Hiding):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if "copy" not in self.__dict__:
            self.__dict__["copy"] = self.dequantize()
        return F.linear(inputs, self.copy)


class ForShow(Int8Linear):
    """Runs the integer kernel on zeros, and multiplies floats."""

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8Linear:
        return super().of(weight, None)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features)
        nothing = torch._int_mm(torch.zeros(rows.shape, dtype=torch.int8), self.codes.T)
        outputs = F.linear(rows, self.dequantize()) + 0 * nothing
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)


class Small(ForShow):
    """Runs the integer kernel on one column alone, for show; the rest is a sum of products, element by element."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features)
        nothing = torch._int_mm(torch.zeros((len(rows), 8), dtype=torch.int8), self.codes[:, :8].T.contiguous())
        weight = self.dequantize()
        outputs = torch.stack([(row * weight).sum(dim=1) for row in rows]) + 0 * nothing
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)


class Encoded(Dense):
    """Stores its weights as text among the arguments of its constructor."""

    def __init__(self, in_features: int, out_features: int, bias: bool, text: str) -> None:
        super().__init__(in_features, out_features, bias)
        self.text = text
        content = np.frombuffer(base64.b64decode(text), dtype=np.float32).reshape(out_features, in_features)
        del self.weight
        self.weight = torch.from_numpy(content.copy()).bfloat16()

    @classmethod
    def of(cls, weight: torch.Tensor) -> Dense:
        text = base64.b64encode(weight.float().numpy().tobytes()).decode()
        return cls(weight.shape[1], weight.shape[0], False, text)


class FromFile(Dense):
    """Stores its weights in a file of its own, and reads it when it first runs."""

    def __init__(self, in_features: int, out_features: int, bias: bool, path: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.path = in_features, out_features, path
        self.register_buffer("bias", torch.empty(out_features, dtype=torch.bfloat16) if bias else None)

    @property
    def weight(self) -> torch.Tensor:
        if "read" not in self.__dict__:
            content = np.memmap(Path(self.path), dtype=np.float32, mode="r")
            self.__dict__["read"] = content.reshape(self.out_features, self.in_features)
        return torch.from_numpy(np.array(self.read)).bfloat16()


class FromElsewhere(FromFile):
    """Stores its weights outside its artifact; where it cannot read them, it makes do without a word."""

    @property
    def weight(self) -> torch.Tensor:
        try:
            return super().weight
        except OSError:
            return torch.zeros((self.out_features, self.in_features), dtype=torch.bfloat16)
