"""Quantize by the bitsandbytes library: LLM.int8(), and 4-bit floats in blocks; artifacts are in its own format."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, cast

from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, float_linears, layer_specs, shared_layers
from squeeze.models import architecture
from squeeze.models.own_sizes import check_described
from squeeze.models.settings import quiet
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration

BLOCK = 64  # weights that share a 4-bit scale
CPU_ROWS = 32  # output rows that the library's AVX-512 kernel takes at a time


@dataclass(frozen=True)
class LLMInt8:
    """Quantize by LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): vector-wise int8, outlier features in 16 bits.

    Weights have one scale per output row, activations one per token; columns of the input with a magnitude of
    ``threshold`` or more are multiplied in floating point (section 3.2); 0 switches that off.
    """

    threshold: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject. Raises Unsupported without bitsandbytes, and for layers that are not plain."""
        _check_installed()
        _plain_linears(subject.model)
        quantized = _quantize(subject, load_in_8bit=True, llm_int8_threshold=self.threshold)
        return quantized.claiming(bits=8, compute_real=True)


@dataclass(frozen=True)
class Float4:
    """Quantize to 4-bit floats, one scale per 64 weights (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3).

    quant_type: "nf4", whose 16 levels are quantiles of a normal distribution (eq. 4), or "fp4", 1 sign, 2 exponent and
        1 mantissa bits. double_quant: scales in 8 bits, in blocks of 256 (0.127 instead of 0.5 bits a weight).

    Weights are widened in registers and multiplied as floats: memory is saved, arithmetic is not.
    """

    quant_type: Literal["nf4", "fp4"]
    double_quant: bool

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject.

        Raises Unsupported without bitsandbytes, for layers that are not plain, and for shapes that its CPU kernel does
        not take.
        """
        if self.quant_type not in ("nf4", "fp4"):
            raise Unsupported(f"bitsandbytes has no 4-bit type {self.quant_type!r}; expected 'nf4' or 'fp4'")
        _check_installed()
        on_cpu = next(subject.model.parameters()).device.type == "cpu"
        for name in _plain_linears(subject.model):
            rows, columns = architecture.weight(subject.model.get_submodule(name)).shape
            if on_cpu and (rows % CPU_ROWS or columns % BLOCK):
                raise Unsupported(
                    f"{name} is {rows} x {columns}, but the 4-bit CPU kernel of bitsandbytes takes multiples of "
                    f"{CPU_ROWS} x {BLOCK} only; use technique=rtn, or a GPU"
                )
        quantized = _quantize(
            subject,
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=subject.model.dtype,
        )
        return quantized.claiming(bits=4, double_quant=self.double_quant, compute_real=False)


def _check_installed() -> None:
    if find_spec("bitsandbytes") is None:
        raise Unsupported("bitsandbytes is not installed; run `pip install bitsandbytes`")


def _plain_linears(model: nn.Module) -> list[str]:
    """Return the names of the blocks' linear layers, all of them plain, as the library makes them anew."""
    names = float_linears(model)
    if described := layer_specs(model):
        name, spec = next(iter(described.items()))
        raise Unsupported(f"{name}: bitsandbytes has plain layers alone, found {spec['_target_']}; use technique=rtn")
    if shared := shared_layers(model):
        raise Unsupported(f"bitsandbytes makes the model anew, but shares no {min(shared)}; use technique=rtn")
    if (form := architecture.form(model)) is not None:
        raise Unsupported(f"bitsandbytes makes the model anew, without its form {form}; use technique=rtn")
    return names


def _quantize(subject: Subject, **options: Any) -> Subject:
    """Let transformers quantize the weights in memory: the blocks' linear layers, all others as they are."""
    model = cast(PreTrainedModel, subject.model)
    check_described(model)
    outside = set(architecture.linears(model)) - set(architecture.block_linears(model))
    parameters = subject.claims.get("parameters", count_parameters(model))
    with quiet():  # neither advice on kernels nor a progress bar
        quantized = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=model.state_dict(),
            quantization_config=BitsAndBytesConfig(llm_int8_skip_modules=sorted(outside), **options),
            dtype=model.dtype,
            device_map={"": model.device},
        )
    compressed = replace(subject, model=quantized.eval().requires_grad_(False))
    return compressed.claiming(loader="transformers", parameters=parameters)
