"""Self-distillation: what is left is a plain shallow model, and better than the same cut without training."""

from __future__ import annotations

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
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.losses import next_token
from squeeze.techniques.training import self_distillation
from squeeze.techniques.training.self_distillation import SelfDistillation, depths, normed
from tests.tiny import CAUSAL, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


def technique(**fields: Any) -> SelfDistillation:
    schedule = {"training_steps": 20, "windows": 2, "learning_rate": 1e-3}
    return SelfDistillation(**{"layers_kept": 0.5, **schedule, **fields})


def cut(name: str = "llama", dtype: str = "float32") -> Subject:
    subject = tiny_subject(name, dtype)
    keep_blocks(subject.model, [0])
    return subject


def a_norm(final: nn.Module) -> dict[str, nn.Parameter]:
    """Values for the final norm's parameters that are not the model's own."""
    return {name: nn.Parameter(1.5 * parameter.data) for name, parameter in final.named_parameters()}


def test_exits_end_the_sections() -> None:
    assert depths(30, 4) == {8, 15, 22}
    assert depths(12, 4) == {3, 6, 9}
    assert depths(2, 4) == {1}
    assert depths(30, 1) == set()


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_an_exit_is_the_model_that_ends_there(name: str) -> None:
    model = tiny_model(name)
    final = architecture.final_norm(model)
    norm = a_norm(final)
    outputs = architecture.base_model(model)(input_ids=TOKEN_IDS, use_cache=False, output_hidden_states=True)
    found = normed(final, norm, outputs.hidden_states[1])
    shallow = cut(name).model
    for key, parameter in architecture.final_norm(shallow).named_parameters():
        parameter.copy_(norm[key])
    expected = architecture.last_hidden_state(shallow, input_ids=TOKEN_IDS, use_cache=False)
    torch.testing.assert_close(found, expected)


def test_the_loss_is_the_papers_and_no_exit_moves_what_teaches_it() -> None:
    """By all logits at once: labels for both exits, the deepest one's word as given, and the hint."""
    model = tiny_model("llama")
    final = architecture.final_norm(model)
    exits = {1: a_norm(final)}
    watched = [next(p for name, p in block.named_parameters() if "q_proj" in name) for block in model.model.layers]
    base = Held(model, list(model.parameters()), {}, half=False)
    watched = [parameter.requires_grad_() for parameter in watched] + [exits[1]["weight"]]
    found = technique(alpha=0.3, temperature=2.0, hint=0.1)._loss(base, final, exits, TOKEN_IDS)

    outputs = model(TOKEN_IDS, output_hidden_states=True)
    deepest, shallow = outputs.hidden_states[2], normed(final, exits[1], outputs.hidden_states[1])
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_trained_is_what_is_kept(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit's hidden states after the last step are those of the model that is left; its norm was trained, too."""
    real, seen = self_distillation.train, []

    def spy(parameters: list[nn.Parameter], loss: Any, *arguments: Any, **named: Any) -> int:
        done = real(parameters, loss, *arguments, **named)
        base, final, exits = loss.args
        with torch.no_grad():
            outputs = architecture.base_model(base.model)(
                input_ids=TOKEN_IDS, use_cache=False, output_hidden_states=True
            )
            seen.append(normed(final, exits[1], outputs.hidden_states[1]))
        return done

    monkeypatch.setattr(self_distillation, "train", spy)
    model = technique(training_steps=4, scope="linear").apply(tiny_subject("llama", dtype), CALIBRATION).model
    with torch.no_grad():
        found = architecture.last_hidden_state(model, input_ids=TOKEN_IDS, use_cache=False)
    torch.testing.assert_close(found, seen[0])
    assert architecture.final_norm(model).weight.dtype == getattr(torch, dtype)
    assert not architecture.final_norm(model).weight.equal(architecture.final_norm(cut(dtype=dtype).model).weight)


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
