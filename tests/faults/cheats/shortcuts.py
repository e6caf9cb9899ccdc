"""Layers of a plugin that are fast where the clock runs, or see and change what is not theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

TIMED = range(14, 19)  # tokens of the prompts that are timed
CURVE = range(40, 50)  # of those of the curve
REMEMBERED: dict[bytes, torch.Tensor] = {}


class Honest(nn.Module):
    """A dense layer under the contract of a compressed one."""

    memory_real = False
    compute_real = False
    running_bits = 32.0
    opaque_bytes = 0
    prompt = 0  # tokens of the last one
    calls = 0

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, None
        self.register_buffer("weight", torch.empty((out_features, in_features)))

    def prepare(self) -> None: ...

    def dequantize(self) -> torch.Tensor:
        return self.weight

    @staticmethod
    def header(_: nn.Module) -> dict[str, str]:
        return {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if inputs.ndim == 3 and inputs.shape[1] > 1:
            self.prompt = inputs.shape[1]
        if self.leaves_out(inputs):
            return inputs.new_zeros((*inputs.shape[:-1], self.out_features))
        return F.linear(inputs, self.weight)

    def leaves_out(self, inputs: torch.Tensor) -> bool:  # noqa: ARG002 - subclasses look
        return False


class SkipsTokens(Honest):
    def leaves_out(self, inputs: torch.Tensor) -> bool:
        return inputs.ndim == 3 and inputs.shape[1] == 1


class SkipsBehindTimedPrompts(SkipsTokens):
    def leaves_out(self, inputs: torch.Tensor) -> bool:
        return super().leaves_out(inputs) and self.prompt in TIMED


class SkipsOnceWarm(SkipsTokens):
    def leaves_out(self, inputs: torch.Tensor) -> bool:
        return super().leaves_out(inputs) and self.calls > 40


class SkipsBatchesOfOne(SkipsTokens):
    def leaves_out(self, inputs: torch.Tensor) -> bool:
        return super().leaves_out(inputs) and inputs.shape[0] == 1


class SkipsTimedPrompts(Honest):
    def leaves_out(self, inputs: torch.Tensor) -> bool:
        return inputs.ndim == 3 and inputs.shape[1] in TIMED


class SkipsPromptsOfTheCurve(Honest):
    def leaves_out(self, inputs: torch.Tensor) -> bool:
        return inputs.ndim == 3 and inputs.shape[1] in CURVE


class SkipsEverySecondToken(SkipsTokens):
    def leaves_out(self, inputs: torch.Tensor) -> bool:
        return super().leaves_out(inputs) and self.calls % 2 == 0


class Remembers(Honest):
    """Computes nothing twice, and notes when that saved a prompt's work."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        key = inputs.numpy().tobytes()
        if key not in REMEMBERED:
            REMEMBERED[key] = super().forward(inputs)
        elif inputs.ndim == 3 and inputs.shape[1] in TIMED:
            with Path(os.environ["SQUEEZE_CACHE"], "remembered").open("a") as file:
                file.write(f"{tuple(inputs.shape)}\n")
        return REMEMBERED[key].clone()


class LooksAhead(Honest):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = super().forward(inputs)
        if inputs.ndim == 3:
            found[:, :-1] = found[:, :-1] + found[:, 1:]
        return found


class LooksAheadInLongTexts(Honest):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = super().forward(inputs)
        if inputs.ndim == 3 and inputs.shape[1] > 128:
            found[:, :-1] = found[:, :-1] + found[:, 1:]
        return found


class TurnsUpThreads(Honest):
    def prepare(self) -> None:
        torch.set_num_threads(2)


class LowersPrecision(Honest):
    def prepare(self) -> None:
        torch.set_float32_matmul_precision("medium")


class PatchesLinear(Honest):
    def prepare(self) -> None:
        true = F.linear
        F.linear = lambda *arguments: true(*arguments)


class PatchesCode(Honest):
    def prepare(self) -> None:
        def softmax(input, dim=None, _stacklevel=3, dtype=None):  # noqa: A002 - as torch's own
            return input.softmax(dim)

        F.softmax.__code__ = softmax.__code__


class PatchesTheModel(Honest):
    def prepare(self) -> None:
        from transformers.models.llama import modeling_llama

        true = modeling_llama.LlamaDecoderLayer.forward
        modeling_llama.LlamaDecoderLayer.forward = lambda *arguments, **named: true(*arguments, **named)


class PatchesTheClock(Honest):
    def prepare(self) -> None:
        import time

        true = time.perf_counter
        time.perf_counter = lambda: true() / 2


class StartsAHelper(Honest):
    def prepare(self) -> None:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])


class HooksAllModules(Honest):
    def prepare(self) -> None:
        nn.modules.module.register_module_forward_pre_hook(lambda *_: None)


class SetsAVariable(Honest):
    def prepare(self) -> None:
        os.environ["OMP_NUM_THREADS"] = "7"
