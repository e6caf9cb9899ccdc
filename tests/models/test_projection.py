"""Narrower hidden states: exact for states that lie within the basis, refused where they could not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.layout import Sizes, sizes
from squeeze.models.projection import norms, project_hidden
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization import vocabulary
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.students import TOKEN_IDS, assert_near, loads_alone, outputs, rotation, subject_of, within
from tests.tiny import tiny_model, tiny_subject


def tied(**sizes: object) -> Subject:
    return subject_of("llama", tie_word_embeddings=True, **sizes)


def test_turning_the_hidden_states_changes_nothing() -> None:
    model = tiny_model("llama")
    project_hidden(model, rotation())
    assert_near(outputs(model), outputs(tiny_model("llama")))
    assert not torch.allclose(model.model.embed_tokens.weight, tiny_model("llama").model.embed_tokens.weight, atol=0.05)


@pytest.mark.parametrize("sizes_of_config", [{}, {"attention_bias": True, "rms_norm_eps": 0.01}])
def test_states_within_the_basis_lose_nothing(sizes_of_config: dict[str, object]) -> None:
    basis = rotation()[:, :48]
    model = subject_of("llama", **sizes_of_config).model
    within(model, basis)
    for block in architecture.blocks(model):
        if (bias := block.self_attn.o_proj.bias) is not None:
            bias.data.copy_(basis @ basis.T @ bias.data)
    expected = outputs(model)
    project_hidden(model, basis)
    assert_near(outputs(model), expected)
    assert sizes(model) == Sizes(layers=2, hidden=48, channels=128, attention=64)


def test_states_beyond_the_basis_are_what_is_lost() -> None:
    model = tiny_model("llama")
    project_hidden(model, rotation()[:, :48])
    lost = (outputs(model) - outputs(tiny_model("llama"))).norm() / outputs(tiny_model("llama")).norm()
    assert 0.1 < lost < 1


def test_a_tied_head_stays_tied_and_is_exact_for_whole_channels() -> None:
    basis = torch.eye(64)[:, torch.arange(0, 64, 4).repeat(3) + torch.arange(3).repeat_interleave(16)]
    model = tied().model
    within(model, basis)
    expected = outputs(model)
    project_hidden(model, basis)
    assert_near(outputs(model), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("is_tied", [False, True])
def test_what_is_left_loads_without_squeeze(is_tied: bool, tmp_path: Path) -> None:
    subject = tied() if is_tied else tiny_subject("llama")
    project_hidden(subject.model, rotation()[:, :48])
    config = loads_alone(subject, tmp_path, "llama").config
    assert (config.hidden_size, config.head_dim, config.num_attention_heads) == (48, 16, 4)


def test_the_norms_are_those_that_read_the_states() -> None:
    model = tiny_model("llama")
    called: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda norm, _: called.append(norm))
        for module in model.modules()
        if type(module).__name__ == "LlamaRMSNorm"
    ]
    with torch.inference_mode():
        model(TOKEN_IDS)
    assert called == norms(model)
    assert len(handles) == 5


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "bert"])
def test_other_norms_are_refused_before_anything_is_touched(name: str) -> None:
    model = tiny_model(name)
    with pytest.raises(Unsupported, match=rf"{name} models cannot be projected: .* expected llama"):
        project_hidden(model, rotation()[:, :48])
    assert torch.equal(outputs(model), outputs(tiny_model(name)))


def test_a_size_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(Unsupported, match="50 is no multiple of 4 heads, .* one that is: 48"):
        project_hidden(tiny_model("llama"), rotation()[:, :50])


def test_what_is_compressed_is_refused() -> None:
    model = RoundToNearest(8, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty()).model
    with pytest.raises(Unsupported, match="is a QuantizedLinear, expected a plain layer"):
        project_hidden(model, rotation()[:, :48])
    model = tiny_model("llama")
    vocabulary.quantize(model, 8, 32)
    with pytest.raises(Unsupported, match="embedding or head is compressed; project before"):
        project_hidden(model, rotation()[:, :48])
