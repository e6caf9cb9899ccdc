"""Self-distillation: what is left is a plain shallow model, and better than the same cut without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.layers.scopes import Held
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.models.surgery import keep_blocks
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import Objective, next_token
from squeeze.techniques.training import self_distillation
from squeeze.techniques.training.self_distillation import Exits, SelfDistillation, depths
from tests.tiny import CAUSAL, tiny_model, tiny_subject
from tests.unchanged import unchanged

TOKEN_IDS = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


def technique(**fields: Any) -> SelfDistillation:
    schedule = {"training_steps": 20, "windows": 2, "learning_rate": 1e-3}
    return SelfDistillation(**{"layers_kept": 0.5, **schedule, **fields})


def cut(name: str = "llama", dtype: str = "float32") -> Subject:
    subject = tiny_subject(name, dtype)
    keep_blocks(subject.model, [0])
    return subject


def exits_of(model: nn.Module, factor: float = 1.5, dtype: torch.dtype = torch.float32) -> Exits:
    """One after the first block, its norm not the model's own."""
    final = architecture.final_norm(model)
    values = {name: nn.Parameter(factor * parameter.data) for name, parameter in final.named_parameters()}
    return Exits(final, {1: values}, dtype)


def test_exits_end_the_sections() -> None:
    assert depths(30, 4) == {8, 15, 22}
    assert depths(12, 4) == {3, 6, 9}
    assert depths(2, 4) == {1}
    assert depths(30, 1) == set()


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_an_exit_is_the_model_that_ends_there(name: str) -> None:
    model = tiny_model(name)
    exits = exits_of(model)
    outputs = architecture.base_model(model)(input_ids=TOKEN_IDS, use_cache=False, output_hidden_states=True)
    found = exits.read(1, outputs.hidden_states[1])
    shallow = cut(name).model
    for key, parameter in architecture.final_norm(shallow).named_parameters():
        parameter.copy_(exits.norms[1][key])
    expected = architecture.last_hidden_state(shallow, input_ids=TOKEN_IDS, use_cache=False)
    torch.testing.assert_close(found, expected)


def test_the_loss_is_the_papers_and_no_exit_moves_what_teaches_it() -> None:
    """By all logits at once: labels for both exits, the deepest one's word as given, and the hint."""
    model = tiny_model("llama")
    exits = exits_of(model)
    watched = [next(p for name, p in block.named_parameters() if "q_proj" in name) for block in model.model.layers]
    base = Held(model, list(model.parameters()), {}, half=False)
    watched = [parameter.requires_grad_() for parameter in watched] + exits.parameters
    found = technique(hint=0.1)._loss(base, exits, Objective(temperature=2.0, alpha=0.3), TOKEN_IDS)

    outputs = model(TOKEN_IDS, output_hidden_states=True)
    deepest, shallow = outputs.hidden_states[2], exits.read(1, outputs.hidden_states[1])
    logits, given = model.lm_head(shallow), outputs.logits.detach()
    p, q = (given / 2).log_softmax(-1), (logits / 2).log_softmax(-1)
    divergence = 4 * (p.exp() * (p - q)).sum(-1).mean()
    distance = (shallow - deepest.detach()).square().mean() / deepest.detach().square().mean()
    expected = cross_entropy(outputs.logits) + 0.7 * cross_entropy(logits) + 0.3 * divergence + 0.1 * distance
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    pairs = zip(torch.autograd.grad(found, watched), torch.autograd.grad(expected, watched), strict=True)
    for own, by_hand in pairs:
        assert by_hand.abs().max() > 0
        torch.testing.assert_close(own, by_hand, rtol=1e-3, atol=1e-6)


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKEN_IDS[:, 1:].flatten())


@pytest.mark.parametrize("scope", ["linear", "all"])
@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_left_is_a_plain_shallow_model_better_than_the_same_cut(name: str, scope: str, tmp_path: Path) -> None:
    subject = technique(scope=scope).apply(tiny_subject(name), CALIBRATION)
    subject.model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(tiny_model(name))
    assert loaded.config.num_hidden_layers == 1
    with torch.no_grad():
        assert loaded(TOKEN_IDS).logits.equal(subject.model(TOKEN_IDS).logits)
        assert next_token(loaded, TOKEN_IDS) < 0.95 * next_token(cut(name).model, TOKEN_IDS)
    assert subject.claims["training_tokens"] == 20 * 2 * 32
    assert subject.claims["layers_kept"] == 0.5
    assert subject.claims["parameters"] == count_parameters(tiny_model(name))


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_an_exits_norm_is_rounded_as_it_will_be_kept(name: str) -> None:
    """Also where the states are float32, as those of a bfloat16 model are while all of it is trained."""
    model, shallow = tiny_model(name), cut(name).model
    exits = exits_of(model, factor=1 + 2**-9, dtype=torch.bfloat16)
    outputs = architecture.base_model(model)(input_ids=TOKEN_IDS, use_cache=False, output_hidden_states=True)
    found = exits.read(1, outputs.hidden_states[1])
    for key, parameter in architecture.final_norm(shallow).named_parameters():
        parameter.copy_(exits.norms[1][key].bfloat16())
    expected = architecture.last_hidden_state(shallow, input_ids=TOKEN_IDS, use_cache=False)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("dtype", "scope"), [("float32", "linear"), ("bfloat16", "linear"), ("bfloat16", "all")])
def test_what_was_trained_is_what_is_kept(dtype: str, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit's hidden states after the last step are those of the model that is left; its norm was trained, too.

    Where all of it was trained, embeddings and norms are rounded in the end: up to that.
    """
    real, seen = self_distillation.train, []

    def spy(parameters: list[nn.Parameter], loss: Any, *arguments: Any, **named: Any) -> int:
        done = real(parameters, loss, *arguments, **named)
        base, exits, _ = loss.args
        assert exits.dtype == getattr(torch, dtype)
        with torch.no_grad(), base.multiplying():
            outputs = architecture.base_model(base.model)(
                input_ids=TOKEN_IDS, use_cache=False, output_hidden_states=True
            )
            seen.append(exits.read(1, outputs.hidden_states[1]))
        return done

    monkeypatch.setattr(self_distillation, "train", spy)
    model = technique(training_steps=8, scope=scope).apply(tiny_subject("llama", dtype), CALIBRATION).model
    with torch.no_grad():
        found = architecture.last_hidden_state(model, input_ids=TOKEN_IDS, use_cache=False)
    if scope == "linear":
        torch.testing.assert_close(found, seen[0])
    else:
        tolerance = 0.03 * float(seen[0].abs().max())
        torch.testing.assert_close(found.float(), seen[0].float(), rtol=0, atol=tolerance)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not architecture.final_norm(model).weight.equal(architecture.final_norm(cut(dtype=dtype).model).weight)


@pytest.mark.parametrize("scope", ["linear", "all"])
def test_what_was_killed_goes_on_bit_for_bit(scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exits' norms, too: one of them is kept."""
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    steps, real, calls = technique(training_steps=6, scope=scope), self_distillation._distance, []
    whole = steps.apply(tiny_subject("llama"), CALIBRATION).model.state_dict()

    def dies(*arguments: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(self_distillation, "_distance", dies)
    with pytest.raises(KeyboardInterrupt):
        steps.apply(tiny_subject("llama"), replace(CALIBRATION, workplace=Workplace(tmp_path)))
    continued = steps.apply(tiny_subject("llama"), replace(CALIBRATION, workplace=Workplace(tmp_path)))
    assert len(calls) == 4 + 3
    known = continued.model.state_dict()
    assert known.keys() == whole.keys()
    assert all(tensor.equal(known[key]) for key, tensor in whole.items())
    assert not whole["model.norm.weight"].equal(tiny_model("llama").state_dict()["model.norm.weight"])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"alpha": 1.5}, "alpha is 1.5, expected a number from 0 to 1"),
        ({"temperature": 0.0}, "temperature is 0, expected a number above 0"),
        ({"sections": 0}, "sections is 0, expected 1 or more"),
        ({"hint": -0.1}, "hint is -0.1, expected a number of 0 or more"),
        ({"windows": 0}, "windows=0 is not allowed, expected at least 1"),
    ],
)
@pytest.mark.parametrize("scope", ["linear", "all"])
def test_fields_that_mean_nothing_are_refused_before_any_work(fields: dict[str, Any], told: str, scope: str) -> None:
    subject = tiny_subject("llama", "bfloat16")
    with unchanged(subject.model), pytest.raises(Unsupported, match=told):
        technique(scope=scope, **fields).apply(subject, CALIBRATION)


@pytest.mark.parametrize("layers_kept", [0.0, 1.0, 0.1, 0.9])
def test_an_exit_that_is_none_is_refused(layers_kept: float) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match="of 2 blocks; expected an exit after 1 to 1"):
        technique(layers_kept=layers_kept).apply(subject, CALIBRATION)
    assert len(architecture.blocks(subject.model)) == 2
    assert next_token(subject.model, TOKEN_IDS).equal(next_token(tiny_model("llama"), TOKEN_IDS))


def test_a_model_without_a_final_norm_is_refused() -> None:
    subject = tiny_subject("opt")
    subject.model.model.decoder.final_layer_norm = None
    with pytest.raises(Unsupported, match="no final norm found under any of norm, ln_f"):
        technique().apply(subject, CALIBRATION)
