"""Narrow students: what gives nothing goes first, and the claims are what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.layout import Sizes, layout, sizes
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.heads import Heads
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.narrow import Narrow, output_energy, principal
from tests.students import assert_near, loads_alone, outputs, rotation, subject_of, within
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TEXT = CalibrationText(torch.randint(256, (5, 32), generator=torch.Generator().manual_seed(0)))
ALL = {"channels_kept": 0.5, "heads_kept": 0.5, "hidden_kept": 0.75}


@pytest.mark.parametrize("size", [1, 4])
def test_energy_is_what_a_groups_inputs_give_to_the_output(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn((6, 12), generator=generator), torch.randn((50, 12), generator=generator)
    x[:, 1] = x[:, 0]  # inputs of one group may depend on each other
    expected = [
        (x[:, start : start + size] @ weight[:, start : start + size].T).square().sum(dim=1).mean()
        for start in range(0, 12, size)
    ]
    torch.testing.assert_close(output_energy(weight, x.T @ x / 50, size), torch.stack(expected))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_that_give_nothing_go_first(name: str) -> None:
    subject = tiny_subject(name)
    for place, block in enumerate(architecture.blocks(subject.model)):
        architecture.weight(block.get_submodule(layout(subject.model).down))[:, place::2] = 0
    expected = outputs(subject.model)
    narrow = Narrow(channels=0.5).apply(subject, TEXT)
    assert_near(outputs(narrow.model), expected)
    assert narrow.claims == {"channels_kept": 0.5, "parameters": count_parameters(tiny_model(name))}


def test_heads_that_give_nothing_go_first() -> None:
    subject = tiny_subject("llama")
    for place, block in enumerate(architecture.blocks(subject.model)):
        block.self_attn.o_proj.weight.data[:, 32 * place : 32 * (place + 1)] = 0
    expected = outputs(subject.model)
    narrow = Narrow(channels=1.0, heads=0.5).apply(subject, TEXT)
    assert_near(outputs(narrow.model), expected)
    assert narrow.model.config.num_key_value_heads == 1


def test_directions_that_hold_no_states_go_first() -> None:
    subject = tiny_subject("llama")
    within(subject.model, rotation()[:, :48])
    expected = outputs(subject.model)
    found = principal(subject.model, TEXT.token_ids, 48)
    torch.testing.assert_close(found.T @ found, torch.eye(48), atol=1e-5, rtol=0)
    narrow = Narrow(channels=1.0, hidden=0.75).apply(subject, TEXT)
    assert_near(outputs(narrow.model), expected)
    assert narrow.claims["hidden_kept"] == 0.75


def test_principal_directions_lose_less_than_any_others() -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[:, :16] *= 5
    norms: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, inputs: norms.append(inputs[0].flatten(0, 1)))
    with torch.inference_mode():
        model(TEXT.token_ids)
    handle.remove()
    kept = [(norms[0] @ basis).norm() for basis in (principal(model, TEXT.token_ids, 32), rotation()[:, :32])]
    assert kept[0] > kept[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_loads_without_squeeze(name: str, tmp_path: Path) -> None:
    technique = Narrow(0.5, 0.5, 0.75) if name == "llama" else Narrow(0.5)
    narrow = technique.apply(tiny_subject(name), TEXT)
    model = loads_alone(narrow, tmp_path, name)
    assert sizes(model) == (Sizes(2, 48, 64, 32) if name == "llama" else Sizes(2, 64, 64, 64))
    if name == "llama":
        assert narrow.claims == {**ALL, "parameters": count_parameters(tiny_model(name))}


def test_other_steps_come_before_and_after(tmp_path: Path) -> None:
    subject = LayerDrop(0.5, "every_other").apply(subject_of("llama", layers=4), TEXT)
    subject = Narrow(0.5).apply(Narrow(0.5, 0.5).apply(subject, TEXT), TEXT)
    subject = RoundToNearest(4, 32, symmetric=True).apply(subject, TEXT)
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path, prepare=False)
    assert torch.equal(outputs(loaded.model), outputs(subject.model))
    claimed = {name: loaded.claims[name] for name in ("layers_kept", "channels_kept", "heads_kept", "bits")}
    assert claimed == {"layers_kept": 0.5, "channels_kept": 0.25, "heads_kept": 0.5, "bits": 4}


def test_heads_that_are_left_keep_their_size_where_the_configuration_says_another_number_of_them(
    tmp_path: Path,
) -> None:
    subject = Heads(0.75, "wanda").apply(subject_of("llama", num_key_value_heads=4), TEXT)  # 3, it says 4
    subject = Narrow(1.0, hidden=0.75).apply(subject, TEXT)
    assert subject.model.config.head_dim == 16
    artifact.save(subject, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path).model), outputs(subject.model))


@pytest.mark.parametrize(
    ("name", "technique", "message"),
    [
        ("llama", Narrow(0.0), r"channels=0\.0; expected more than 0, at most 1"),
        ("llama", Narrow(0.5, 1.5), r"heads=1\.5; expected more than 0"),
        ("llama", Narrow(0.5, hidden=0.79), r"51 is no multiple of 4 heads, .* one that is: 48"),
        ("gpt2", Narrow(0.5, 0.5), "with 2 of 4 heads it would not load"),
        ("opt", Narrow(0.5, hidden=0.5), "opt models cannot be projected"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(name: str, technique: Narrow, message: str) -> None:
    subject = tiny_subject(name)
    with pytest.raises(Unsupported, match=message):
        technique.apply(subject, TEXT)
    assert torch.equal(outputs(subject.model), outputs(tiny_model(name)))


def test_a_model_that_is_compressed_is_refused_and_left_as_it_is() -> None:
    subject = RoundToNearest(4, 32, symmetric=True).apply(tiny_subject("llama"), TEXT)
    with pytest.raises(Unsupported, match="cut before the step that compresses"):
        Narrow(0.5).apply(subject, TEXT)
    assert sizes(subject.model).channels == 128


def test_without_text_it_says_what_is_missing() -> None:
    with pytest.raises(SqueezeError, match="no tokens"):
        Narrow(0.5, hidden=0.75).apply(tiny_subject("llama"), CalibrationText.empty())
