"""Decoded tokens are the scored model's choice, but for rounding, however it is compressed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squeeze.layers.contract import prepare_layers
from squeeze.layers.thresholded import Thresholded
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import teacher_forced
from squeeze.records import decoded
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.kernels import KERNELS
from tests.tiny import CAUSAL, tiny_subject

NO_DATA = CalibrationText.empty()
PROMPTS = torch.randint(256, (4, 40), generator=torch.Generator().manual_seed(1))
TOKENS = 32
COARSE = (TorchDynamic, KIVI)


class LeftOut(nn.Module):
    """Returns zeros where there is one token."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs)
        return found * 0 if inputs.shape[1] == 1 else found


def worst(subject: Subject) -> float:
    """The worst run of gaps over prompts, as over rounds."""
    engine, rounds = Eager("cpu", 1).engine(subject), []
    for prompt in PROMPTS:
        generation = engine.begin(len(prompt) + TOKENS)
        generation.prefill(prompt[None])
        for _ in range(TOKENS - 1):
            generation.decode()
        rounds.append({"gaps": {"token_s/1": [teacher_forced.gaps(engine, prompt, generation.token_ids()[0])]}})
    found = decoded.worst(rounds)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CAUSAL)
def test_uncompressed_models_choose_their_own_tokens(name: str, dtype: str) -> None:
    assert worst(tiny_subject(name, dtype)) <= decoded.ROUNDED / 10


@pytest.mark.promise(19)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "technique",
    [
        RoundToNearest(2, 32, symmetric=False),
        *KERNELS,
        KIVI(2, 32),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_so_do_compressed_ones(technique: Any, dtype: str) -> None:
    subject = technique.apply(tiny_subject("llama", dtype), NO_DATA)
    prepare_layers(subject.model)
    coarse = isinstance(technique, COARSE)
    assert worst(subject) <= decoded.allowed(coarse) / (2 if coarse else 10)


@pytest.mark.promise(19)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("place", ["0.self_attn.o_proj", "1.mlp.down_proj"])
def test_one_layer_left_out_is_enough(place: str, dtype: str) -> None:
    subject, name = tiny_subject("llama", dtype), f"model.layers.{place}"
    architecture.replace(subject.model, name, LeftOut(subject.model.get_submodule(name)))
    assert worst(subject) > decoded.COARSE


def test_a_wrong_token_is_as_far_off_as_its_logit() -> None:
    subject = tiny_subject("llama")
    engine, prompt = Eager("cpu", 1).engine(subject), PROMPTS[0]
    with torch.inference_mode():
        logits = subject.model(input_ids=prompt[None]).logits[0, -1]
    least = int(logits.argmin())
    expected = float((logits.max() - logits.min()) / logits.std())
    assert teacher_forced.gaps(engine, prompt, [least]) == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize(("threshold", "coarse"), [(0.1, True), (0.0, False)])
def test_inputs_that_come_or_go_are_coarse(threshold: float, coarse: bool) -> None:
    subject = tiny_subject("llama")
    engine = Eager("cpu", 1).engine(subject)
    assert not teacher_forced.is_coarse(engine)
    name = "model.layers.0.mlp.down_proj"
    base = subject.model.get_submodule(name)
    layer = Thresholded.of(base, architecture.shape(base), threshold, torch.float32)
    architecture.replace(subject.model, name, layer)
    assert teacher_forced.is_coarse(engine) == coarse
    assert teacher_forced.is_coarse(Eager("cpu", 1).engine(replace(tiny_subject("llama"), cache=lambda _: None)))


def test_a_model_without_numbers_has_no_gaps() -> None:
    subject = tiny_subject("llama")
    subject.model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)  # type: ignore[union-attr]
    assert teacher_forced.gaps(Eager("cpu", 1).engine(subject), PROMPTS[0], [1, 2]) == [0.0, 0.0]
