"""Quantize by the torchao library: int8 weights, with int8 activations or without, and int4; in its own format.

Its int8 tensors are written for a compiler, which fuses the widening of weights or the rounding of activations with
the product; run eagerly, each of these is a pass of its own over the data. Ask for both: ``runtime=eager,compile``.
Compiled, intermediate results are rounded less often, so that tokens may differ as between any two kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears, layer_specs, linear, shared_layers
from squeeze.layers.torchao import Int4TensorLinear, Int8TensorLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration

INT4_GROUPS = (32, 64, 128)
INT4_ROWS = 16  # output rows are a multiple of it in the library's packing for CPUs


@dataclass(frozen=True)
class Int8:
    """Quantize weights to 8 bits, symmetric, one scale an output row: torchao's Int8WeightOnlyConfig.

    dynamic: its Int8DynamicActivationInt8WeightConfig: activations too are rounded to 8 bits, with one scale a token,
        and the product is one of integers. Otherwise weights are widened, a layer at a time, and multiplied as floats.
    """

    dynamic: bool

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject. Raises Unsupported where torchao is not installed."""
        _check_installed()
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

        kind = Int8DynamicActivationInt8WeightConfig if self.dynamic else Int8WeightOnlyConfig
        config = kind(set_inductor_config=False)  # torch.compile's settings are the process's, not ours
        names = float_linears(subject.model)
        _name_format(subject.model, map(subject.model.get_submodule, names), config)
        for name in names:
            layer = subject.model.get_submodule(name)
            weight = _quantized(architecture.weight(layer), config)
            architecture.replace(
                subject.model, name, Int8TensorLinear.of(weight, architecture.bias(layer), self.dynamic)
            )
        return subject.claiming(bits=8)


@dataclass(frozen=True)
class Int4WeightOnly:
    """Quantize weights to 4 bits, 16 points from each group's least to its greatest: PrototypeInt4WeightOnlyConfig.

    That is torchao's variant for CPUs (its Int4WeightOnlyConfig needs a GPU). Weights are widened in registers and
    multiplied as floats. group_size: weights of a row that share a scale and a zero point; 32, 64 or 128.
    """

    group_size: Literal[32, 64, 128]

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject.

        Raises Unsupported where torchao is not installed, off the CPU, and for shapes that its kernel lacks.
        """
        _check_installed()
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int4WeightOnlyConfig

        self._check_group_size()
        model = subject.model
        names = float_linears(model)
        for name in names:
            self._check_fits(name, architecture.weight(model.get_submodule(name)))
        _name_format(
            model,
            map(model.get_submodule, names),
            Int4WeightOnlyConfig(self.group_size, set_inductor_config=False),
        )
        config = PrototypeInt4WeightOnlyConfig(self.group_size, set_inductor_config=False)
        for name in names:
            layer = model.get_submodule(name)
            weight = _quantized(architecture.weight(layer), config)
            architecture.replace(model, name, Int4TensorLinear.of(weight, architecture.bias(layer)))
        left = subject.without("sparsity")  # no point of a grid from the least weight to the greatest lies at zero
        return left.claiming(bits=4, group_size=self.group_size, symmetric=False)

    def _check_group_size(self) -> None:
        if self.group_size not in INT4_GROUPS:
            raise Unsupported(f"torchao has no int4 groups of {self.group_size}; expected 32, 64 or 128")

    def _check_fits(self, name: str, weight: torch.Tensor) -> None:
        if weight.device.type != "cpu":
            raise Unsupported(f"torchao_int4 is in torchao's layout for CPUs, not for {weight.device.type}; device=cpu")
        rows, columns = weight.shape
        if rows % INT4_ROWS or columns % self.group_size:
            raise Unsupported(
                f"{name} is {rows} x {columns}, but torchao's int4 kernel for CPUs takes multiples of "
                f"{INT4_ROWS} x {self.group_size} (group_size) only; use another group_size, or technique=rtn"
            )


def _check_installed() -> None:
    if find_spec("torchao") is None:
        raise Unsupported('torchao is not installed; run `pip install "squeeze-bench[torchao]"`')


def _quantized(weight: torch.Tensor, config: Any) -> Any:
    """Return the tensor that torchao makes of a float weight, (out_features, in_features)."""
    from torchao.quantization import quantize_

    holder = nn.Sequential(linear(weight.contiguous(), None))
    quantize_(holder, config)
    return holder[0].weight.data


def _name_format(model: nn.Module, layers: Iterable[nn.Module], config: Any) -> None:
    """Write into the model's configuration how its linear layers are quantized, for plain transformers."""
    from transformers import TorchAoConfig

    if all(isinstance(layer, nn.Linear) for layer in layers) and not (layer_specs(model) or shared_layers(model)):
        outside = architecture.linears(model).keys() - architecture.block_linears(model).keys()
        model.config.quantization_config = TorchAoConfig(config, sorted(outside))  # type: ignore[union-attr]
