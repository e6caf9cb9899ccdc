"""Quantization-aware training: what was trained is what is packed, and training makes it better."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.master_weights import Held, MasterLinear
from squeeze.layers.quantized import QuantizedLinear, put
from squeeze.models import architecture
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import divergence, next_token
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.quantization import qat
from squeeze.techniques.quantization.lsq import LearnedStep
from squeeze.techniques.quantization.qat import QAT, FittedStep, trained
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training import finetune
from squeeze.techniques.training.finetune import Finetune
from squeeze.techniques.training_loop import Plan
from tests.tiny import tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
CALIBRATION = CalibrationText(TOKEN_IDS)


def technique(**fields: Any) -> QAT:
    defaults = {"bits": 3, "group_size": 16, "symmetric": True, "learned_step": False}
    schedule = {"training_steps": 3, "windows": 2, "learning_rate": 1e-3, "temperature": 1.0}
    return QAT(**{**defaults, **schedule, **fields})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (3, False), (2, True)])
def test_the_trained_forward_is_the_packed_one(bits: int, symmetric: bool, learned: bool, dtype: torch.dtype) -> None:
    """After weights and steps have moved by amounts that no 16-bit float holds."""
    layer = torch.nn.Linear(64, 48, dtype=dtype)
    weight = layer.weight.data
    rounding = LearnedStep(weight, bits, 16, symmetric) if learned else FittedStep(bits, 16, symmetric, dtype)
    master = MasterLinear(layer, rounding)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in master.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(5, 64, generator=generator).to(dtype)
    holder = torch.nn.Sequential(master)
    weight, grid = trained(master)
    put(holder, "0", grid.quantize(weight), grid, dtype)
    with torch.no_grad():
        assert torch.equal(holder(x), master(x))
        assert torch.equal(holder[0].dequantize(), master.view(master.weight))


@torch.no_grad()
def test_steps_too_small_for_the_models_type_add_up() -> None:
    layer = torch.nn.Linear(8, 4, dtype=torch.bfloat16)
    layer.weight.fill_(1)
    layer.bias.copy_(torch.arange(4))
    master = MasterLinear(layer, Held(torch.bfloat16))
    for _ in range(64):
        master.weight.add_(2**-10)  # bfloat16 has nothing between 1 and 1 + 2^-7
    assert master(torch.eye(8).bfloat16())[0].tolist() == [1.0625, 2.0625, 3.0625, 4.0625]
    assert (layer.weight == 1).all()


@pytest.mark.parametrize("learned", [False, True])
def test_what_was_trained_is_what_comes_out(learned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model's logits after the last step, fake-quantized and packed."""
    seen = []
    real = qat.train

    def spy(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        with torch.no_grad():
            seen.append(subject.model(HELD_OUT).logits)

    monkeypatch.setattr(qat, "train", spy)
    subject = tiny_subject("llama", "bfloat16")
    technique(learned_step=learned).apply(subject, CALIBRATION)
    with torch.no_grad():
        assert torch.equal(subject.model(HELD_OUT).logits, seen[0])


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bits", [3, 2])
def test_it_comes_nearer_to_its_teacher_than_rounding_to_nearest(bits: int, learned: bool) -> None:
    """Far nearer on the text that it was trained on, and nearer on text that has nothing in common with that."""
    distance = partial(divergence, teacher=tiny_model("llama"), temperature=1.0)
    nearest = RoundToNearest(bits, 16, symmetric=True).apply(tiny_subject("llama"), CALIBRATION)
    trained = technique(bits=bits, learned_step=learned, training_steps=30).apply(tiny_subject("llama"), CALIBRATION)
    with torch.no_grad():
        for token_ids, share in ((TOKEN_IDS, 0.6), (HELD_OUT, 1.0)):
            found, rounded = (distance(subject.model, token_ids=token_ids) for subject in (trained, nearest))
            assert found < share * rounded
    trainable = trained.claims.pop("trainable_parameters")
    assert trained.claims == {"bits": bits, "group_size": 16, "symmetric": True, "training_tokens": 30 * 2 * 32}
    layers = architecture.block_linears(tiny_model("llama")).values()
    weights = sum(architecture.weight(layer).numel() for layer in layers)
    assert trainable == weights + (weights // 16 if learned else 0), "the learned steps of groups are trained, too"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fitted_step_is_the_grid_of_rtn_and_its_gradient_the_identity(dtype: torch.dtype) -> None:
    stored = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = stored.float().requires_grad_()
    expected = affine.fit(stored, 3, 16, symmetric=False)
    rounding = FittedStep(3, 16, False, dtype)
    values = rounding(weight)
    assert torch.equal(values, expected.dequantize(expected.quantize(stored), dtype))
    assert rounding.grid(weight).scales.dtype == expected.scales.dtype
    upstream = torch.linspace(-1, 1, 192).view(6, 32).to(dtype)
    values.backward(upstream)
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream.float())


def test_a_learned_step_is_trained_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {False: 0, True: 0}
    real = qat.train

    def spy(parameters: list[torch.nn.Parameter], *arguments: Any, **named: Any) -> None:
        before = [parameter.detach().clone() for parameter in parameters]
        real(parameters, *arguments, **named)
        moved[learned] = sum(not torch.equal(*pair) for pair in zip(before, parameters, strict=True))

    monkeypatch.setattr(qat, "train", spy)
    for learned in moved:
        technique(learned_step=learned).apply(tiny_subject("llama"), CALIBRATION)
    assert moved == {False: 14, True: 28}


def test_a_row_may_be_one_group() -> None:
    subject = technique(group_size=None).apply(tiny_subject("llama"), CALIBRATION)
    layers = [module for module in subject.model.modules() if isinstance(module, QuantizedLinear)]
    assert {layer.group_size == layer.in_features for layer in layers} == {True}
    assert subject.claims["group_size"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_teacher_stays_what_it_was_at_the_temperature_asked_for(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held once: it reads the very tensors that the model had."""
    subject, seen = tiny_subject("llama", str(dtype).removeprefix("torch.")), set()
    tensors = {parameter.data_ptr() for parameter in subject.model.parameters()}

    def spy(model: torch.nn.Module, teacher: torch.nn.Module, token_ids: torch.Tensor, temperature: float) -> Any:
        seen.add(temperature)
        assert {parameter.data_ptr() for parameter in teacher.parameters()} == tensors
        with torch.no_grad():
            assert torch.equal(teacher(HELD_OUT).logits, expected)
        return divergence(model, teacher, token_ids, temperature)

    with torch.no_grad():
        expected = subject.model(HELD_OUT).logits
    monkeypatch.setattr(qat, "divergence", spy)
    technique(temperature=2.5).apply(subject, CALIBRATION)
    assert seen == {2.5}


def test_only_the_matrices_of_the_blocks_change() -> None:
    before, after = tiny_model("llama"), technique().apply(tiny_subject("llama"), CALIBRATION).model
    kept = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        assert torch.equal(parameter, kept[name]), name
        assert not parameter.requires_grad
    assert not [module for module in after.modules() if isinstance(module, MasterLinear)]


@pytest.mark.parametrize("control", [False, True])
def test_a_killed_training_goes_on_to_the_same_artifact(
    control: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    steps = Finetune(5, 2, 1e-3) if control else technique(learned_step=True, training_steps=5)
    module, name = (finetune, "next_token") if control else (qat, "divergence")
    real, calls = getattr(module, name), []

    def deadly(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    whole = steps.apply(tiny_subject("llama"), CALIBRATION).model.state_dict()
    monkeypatch.setattr(module, name, deadly)
    with pytest.raises(KeyboardInterrupt):
        steps.apply(tiny_subject("llama"), CalibrationText(TOKEN_IDS, workplace=Workplace(tmp_path)))
    continued = steps.apply(tiny_subject("llama"), CalibrationText(TOKEN_IDS, workplace=Workplace(tmp_path)))
    assert len(calls) == 4 + 2
    assert all(torch.equal(tensor, whole[name]) for name, tensor in continued.model.state_dict().items())


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(Unsupported, match="no 5-bit codes"):
        technique(bits=5).apply(tiny_subject("llama"), CALIBRATION)
    with pytest.raises(Unsupported, match="does not divide"):
        technique(group_size=48).apply(tiny_subject("llama"), CALIBRATION)
    with pytest.raises(Unsupported, match="no language-modelling head"):
        technique().apply(tiny_subject("bert"), CALIBRATION)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_control_learns_the_text_and_stays_uncompressed(name: str) -> None:
    before = tiny_model(name, "bfloat16")
    after = Finetune(training_steps=20, windows=2, learning_rate=1e-3).apply(
        tiny_subject(name, "bfloat16"), CALIBRATION
    )
    with torch.no_grad():
        assert next_token(after.model, TOKEN_IDS) < 0.95 * next_token(before, TOKEN_IDS)
    layers, originals = (architecture.block_linears(model) for model in (after.model, before))
    assert {name: type(layer) for name, layer in layers.items()} == {
        name: type(layer) for name, layer in originals.items()
    }
    assert all(not torch.equal(architecture.weight(layers[key]), architecture.weight(originals[key])) for key in layers)
    trainable = sum(architecture.weight(layer).numel() for layer in layers.values())
    assert after.claims == {"training_tokens": 20 * 2 * 32, "trainable_parameters": trainable}


def test_the_control_sees_the_tokens_of_the_trained_row_at_its_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    seen: dict[str, list[torch.Tensor]] = {"qat": [], "finetune": []}
    for module, name, loss in ((qat, "divergence", divergence), (finetune, "next_token", next_token)):
        key = module.__name__.rpartition(".")[2]

        def spy(*arguments: Any, key: str = key, loss: Any = loss, **named: Any) -> torch.Tensor:
            seen[key].append(arguments[-1])
            return loss(*arguments, **named)

        def train(*arguments: Any, real: Any = module.train, **named: Any) -> None:
            plans.append(arguments[-1])
            real(*arguments, **named)

        monkeypatch.setattr(module, name, spy)
        monkeypatch.setattr(module, "train", train)
    technique().apply(tiny_subject("llama"), CALIBRATION)
    Finetune(training_steps=3, windows=2, learning_rate=1e-3).apply(tiny_subject("llama"), CALIBRATION)
    assert plans == 2 * [Plan(3, 2, 1e-3)]
    assert len(seen["qat"]) == 3
    assert all(torch.equal(one, other) for one, other in zip(*seen.values(), strict=True))


def test_after_other_steps_the_teacher_is_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: set[int] = set()

    def spy(model: torch.nn.Module, teacher: torch.nn.Module, token_ids: torch.Tensor, temperature: float) -> Any:
        blocks.add(len(architecture.blocks(teacher)))
        return divergence(model, teacher, token_ids, temperature)

    monkeypatch.setattr(qat, "divergence", spy)
    chain = replace(CALIBRATION, load_baseline=lambda: tiny_model("llama"))
    dropped = LayerDrop(0.5, "every_other").apply(tiny_subject("llama"), chain)
    distance = partial(divergence, teacher=tiny_model("llama"), token_ids=TOKEN_IDS, temperature=1.0)
    with torch.no_grad():
        before = distance(dropped.model)
    trained = technique(bits=8, training_steps=24).apply(dropped, chain)
    assert blocks == {2}
    assert len(architecture.blocks(trained.model)) == 1
    with torch.no_grad():
        assert distance(trained.model) < 0.9 * before


@pytest.mark.parametrize("control", [False, True])
def test_held_out_text_is_looked_at_before_and_after(control: bool) -> None:
    workplace = Workplace()
    steps = Finetune(3, 2, 1e-3) if control else technique()
    steps.apply(tiny_subject("llama"), replace(CALIBRATION, held_out=HELD_OUT, workplace=workplace))
    assert [point.step for point in workplace.curve if point.held_out is not None] == [0, 3]
