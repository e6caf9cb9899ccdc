"""The sliced form: exact in whatever frames, as long as they hold the states; refused where there is no such form."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError, SqueezeError, Unsupported
from squeeze.layers import sliced
from squeeze.layers.contract import count_parameters
from squeeze.layers.sliced import FrameNorm, Sliced
from squeeze.models import architecture
from squeeze.models.layout import Sizes, layout, sizes
from squeeze.models.projection import check_projection
from squeeze.models.surgery import keep_blocks
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization import vocabulary
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.causal import random_causal
from tests.students import TOKEN_IDS, assert_near, outputs, subject_of
from tests.tiny import CAUSAL, tiny_model, tiny_subject

HIDDEN = 64
# Biases and norms that the tiny models have not, and blocks that run one part after the other.
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.01}),
    ("opt", {"enable_bias": False}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("gpt_neox", {"tie_word_embeddings": True}),
]


def frame(number: int, model: nn.Module, within: Tensor | None = None) -> Tensor:
    """A basis in no particular direction, of all dimensions or those of a subspace; without means for a LayerNorm."""
    size = HIDDEN if within is None else within.shape[1]
    turned = torch.linalg.qr(torch.randn((size, size), generator=torch.Generator().manual_seed(number))).Q
    basis = turned if within is None else within @ turned
    return basis - basis.mean(dim=0) if isinstance(architecture.final_norm(model), nn.LayerNorm) else basis


def put_in_frames(model: nn.Module, within: Tensor | None = None) -> None:
    """Slice a model to other frames at each place."""
    sliced.check(model)
    path, number = sliced.stages(model), 0
    basis = frame(number, model, within)
    sliced.begin(model, basis)
    for block in architecture.blocks(model):
        sliced.enter(block, path)
        for stage in path:
            number += 1
            after = frame(number, model, within)
            sliced.open_stage(block, stage, basis)
            sliced.close_stage(block, stage, basis, after)
            basis = after
    sliced.end(model, basis)


def subspace(model: nn.Module, dimensions: int) -> Tensor:
    """Let all that a model writes to its states lie in a subspace, whose basis, (hidden, dimensions), is returned."""
    noise = torch.randn((HIDDEN, dimensions), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(noise - noise.mean(dim=0)).Q  # without means, so that no norm leads out of it
    onto = basis @ basis.T
    for table in architecture.base_model(model).modules():
        if isinstance(table, nn.Embedding):
            table.weight.data.copy_(table.weight.data @ onto)
    where = layout(model)
    for block in architecture.blocks(model):
        for name in (where.output, where.down):
            layer = block.get_submodule(name)
            architecture.weight(layer).copy_(onto @ architecture.weight(layer))
            if (bias := architecture.bias(layer)) is not None:
                bias.copy_(onto @ bias)
    return basis


@pytest.mark.parametrize(("name", "fields"), [*((name, {}) for name in CAUSAL), *OTHERS])
def test_turning_the_states_at_each_place_changes_nothing(name: str, fields: dict[str, Any]) -> None:
    model = subject_of(name, **fields).model
    expected = outputs(model)
    put_in_frames(model)
    assert_near(outputs(model), expected)
    residual = architecture.blocks(model)[0].residuals[0].weight
    assert float((residual - torch.eye(HIDDEN)).abs().max()) > 0.2


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3"])
def test_so_it_is_with_kin_of_llama(name: str) -> None:
    model = random_causal(name)
    expected = outputs(model)
    put_in_frames(model)
    assert_near(outputs(model), expected)


@pytest.mark.parametrize("name", CAUSAL)
def test_states_within_a_subspace_lose_nothing(name: str) -> None:
    model = tiny_model(name)
    basis = subspace(model, 40)
    expected = outputs(model)
    put_in_frames(model, basis)
    assert_near(outputs(model), expected)
    assert sizes(model) == Sizes(layers=2, hidden=40, channels=128, attention=64)
    assert architecture.form(model) == Sliced(40)


def test_states_beyond_it_are_what_is_lost() -> None:
    model, basis = tiny_model("llama"), subspace(tiny_model("llama"), 40)
    expected = outputs(model)
    put_in_frames(model, basis)
    assert float((outputs(model) - expected).norm() / expected.norm()) > 0.1


def test_a_norm_divides_by_all_dimensions() -> None:
    norm = FrameNorm(8, 0.5, torch.tensor([1.0, 2.0]))
    found = norm(torch.tensor([[2.0, -4.0]], dtype=torch.bfloat16))
    root = ((4 + 16) / 8 + 0.5) ** 0.5
    assert torch.allclose(found.float(), torch.tensor([[2.0 / root, 2 * -4.0 / root]]), atol=0.02)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_cache_continues_what_it_holds(name: str) -> None:
    model = tiny_model(name)
    put_in_frames(model, subspace(tiny_model(name), 40))
    with torch.inference_mode():
        whole = model(TOKEN_IDS).logits
        begun = model(TOKEN_IDS[:, :8], use_cache=True)
        rest = model(TOKEN_IDS[:, 8:], past_key_values=begun.past_key_values).logits
    assert_near(rest, whole[:, 8:])


@pytest.mark.parametrize("name", CAUSAL)
def test_a_compiler_sees_all_of_it_and_a_copy_is_a_model_of_its_own(name: str) -> None:
    model = tiny_model(name)
    put_in_frames(model)
    expected = outputs(model)
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(outputs(copied), expected)
    compiled = torch.compile(copied.forward, fullgraph=True, dynamic=False, backend="eager")
    with torch.inference_mode():
        assert_near(compiled(TOKEN_IDS, use_cache=False)[0], expected)


def test_hidden_states_between_blocks_are_still_shown() -> None:
    model = tiny_model("llama")
    put_in_frames(model, subspace(tiny_model("llama"), 40))
    shown = model(TOKEN_IDS, output_hidden_states=True).hidden_states
    assert [states.shape[-1] for states in shown] == [40, 40, 40]


@pytest.mark.parametrize("name", CAUSAL)
def test_an_artifact_says_the_width_and_is_made_again(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    put_in_frames(subject.model, subspace(tiny_model(name), 40))
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path).model
    assert artifact.describe(tmp_path)["form"] == {"_target_": "sliced.Sliced", "width": 40}
    assert torch.equal(outputs(loaded), outputs(subject.model))
    assert count_parameters(loaded) == count_parameters(subject.model)
    assert {parameter.device.type for parameter in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}


@pytest.mark.parametrize("width", [39, 65, -8, 0, "40", 40.0, True, None, [40]])
def test_a_false_width_is_refused(width: Any, tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    put_in_frames(subject.model, subspace(tiny_model("llama"), 40))
    artifact.save(subject, tmp_path)
    changed = {**artifact.describe(tmp_path), "form": {"_target_": "sliced.Sliced", "width": width}}
    (tmp_path / artifact.DESCRIPTION).write_text(json.dumps(changed))
    with pytest.raises(SqueezeError, match=r"expected 1 to 64|does not fit"):
        artifact.load(tmp_path)


@pytest.mark.parametrize("target", ["sliced.FrameNorm", "sliced.Part", "quantized.QuantizedLinear", "absent.Form"])
def test_what_is_no_form_is_refused(target: str, tmp_path: Path) -> None:
    artifact.save(tiny_subject("llama"), tmp_path)
    changed = {**artifact.describe(tmp_path), "form": {"_target_": target, "width": 40}}
    (tmp_path / artifact.DESCRIPTION).write_text(json.dumps(changed))
    with pytest.raises(IntegrityError, match=r"artifact.json names the form"):
        artifact.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("bert", {}, "bert models cannot be sliced: their norms lie in the residual path"),
        ("opt", {"do_layer_norm_before": False}, "norms lie in the residual path; expected do_layer_norm_before=True"),
        ("opt", {"_remove_final_layer_norm": True}, "its head reads the states without a norm"),
        ("opt", {"word_embed_proj_dim": 32}, "projects its embeddings"),
        ("gpt2", {"add_cross_attention": True}, "its blocks attend to an encoder"),
    ],
)
def test_what_has_no_such_form_is_refused(name: str, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        sliced.check(subject_of(name, **fields).model)


def test_what_is_compressed_and_what_has_no_head_is_refused() -> None:
    model = RoundToNearest(8, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty()).model
    with pytest.raises(Unsupported, match="is a QuantizedLinear, expected a plain layer"):
        sliced.check(model)
    model = tiny_model("llama")
    vocabulary.quantize(model, 8, 32)
    with pytest.raises(Unsupported, match="embedding or head is compressed; slice before"):
        sliced.check(model)
    with pytest.raises(Unsupported, match="has no language-modelling head"):
        sliced.check(tiny_model("gpt2_classifier"))


def test_what_would_tear_the_frames_apart_is_refused_afterwards() -> None:
    model = tiny_model("llama")
    put_in_frames(model)
    with pytest.raises(Unsupported, match="sliced already"):
        sliced.check(model)
    with pytest.raises(Unsupported, match="have no basis in common"):
        check_projection(model, 48, 4)
    with pytest.raises(Unsupported, match="drop blocks, then slice"):
        keep_blocks(model, [0])
