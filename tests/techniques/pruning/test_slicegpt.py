"""SliceGPT against the paper's formula written out on the dense model; counts by hand; steps before and after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.block_calls import before_first_block, block_calls
from squeeze.models.subject import Subject
from squeeze.probes.divergence import relative_entropy
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Technique
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.pruning.slicegpt import SliceGPT, directions, kept
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.awq import AWQ
from squeeze.techniques.quantization.bitsandbytes import _plain_linears
from squeeze.techniques.quantization.gptq import GPTQ
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.narrow import Narrow
from squeeze.techniques.training.recover import Recover
from tests.students import assert_near, outputs, subject_of
from tests.tiny import CAUSAL, tiny_model, tiny_subject

TEXT = CalibrationText(
    torch.randint(256, (6, 32), generator=torch.Generator().manual_seed(0)),
    held_out=torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(1)),
    load_baseline=lambda: tiny_model("llama"),
)
HIDDEN, WIDTH = 64, 48
# Of each architecture, the parts of a block that are added to the states at a time, and what runs in each.
Parts = tuple[tuple[tuple[str, ...], ...], ...]
LLAMA: Parts = ((("input_layernorm", "self_attn"),), (("post_attention_layernorm", "mlp"),))
GPT2: Parts = ((("ln_1", "attn"),), (("ln_2", "mlp"),))
OPT: Parts = ((("self_attn_layer_norm", "self_attn"),), (("final_layer_norm", "fc1", "activation_fn", "fc2"),))
NEOX: Parts = ((("input_layernorm", "attention"), ("post_attention_layernorm", "mlp")),)
NEOX_IN_A_ROW: Parts = (NEOX[0][:1], NEOX[0][1:])
CASES: list[tuple[str, Parts, dict[str, Any]]] = [
    ("llama", LLAMA, {}),
    ("llama", LLAMA, {"tie_word_embeddings": True}),
    ("gpt2", GPT2, {}),
    ("opt", OPT, {}),
    ("gpt_neox", NEOX, {}),
    ("gpt_neox", NEOX_IN_A_ROW, {"use_parallel_residual": False}),
]


def sliced(name: str, share: float, dtype: str = "float32", **fields: Any) -> Subject:
    return SliceGPT(share).apply(subject_of(name, dtype, **fields), TEXT)


@torch.no_grad()
def written_out(model: nn.Module, parts: Parts, width: int) -> Tensor:
    """Logits of the calibration text where the states of a dense model are projected, Q Q^T x, wherever a norm reads.

    Q: the first eigenvectors of the sum of x x^T over all tokens, x the states there without scale and shift.
    """
    tokens = TEXT.token_ids
    calls = block_calls(model, tokens[:1])
    centres = isinstance(architecture.final_norm(model), nn.LayerNorm)

    def projected(states: Tensor) -> Tensor:
        wide = states.double()
        wide = wide - wide.mean(-1, keepdim=True) if centres else wide
        normed = (wide / wide.square().mean(-1, keepdim=True).sqrt()).flatten(0, 1)
        basis = torch.linalg.eigh(normed.T @ normed).eigenvectors[:, -width:]
        return (wide @ basis @ basis.T).float()

    def run(block: nn.Module, chain: tuple[str, ...], states: Tensor, named: Any) -> Tensor:
        for name in chain:
            module = block.get_submodule(name)
            states = module(states, **named)[0] if name in ("self_attn", "attn", "attention") else module(states)
        return states

    states = projected(before_first_block(model, tokens, 2))
    for name, block in architecture.named_blocks(model):
        named = {key: value for key, value in calls[name].named.items() if not key.startswith("encoder")}
        for stage in parts:
            states = projected(states + sum(run(block, chain, states, named) for chain in stage))
    return architecture.head(model)(architecture.final_norm(model)(states))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "parts", "fields"), CASES)
@pytest.mark.parametrize("width", [WIDTH, 16])
def test_it_is_the_papers_projection_of_the_dense_model(
    name: str, parts: Parts, fields: dict[str, Any], width: int
) -> None:
    expected = written_out(subject_of(name, **fields).model, parts, width)
    model = sliced(name, width / HIDDEN, **fields).model
    with torch.inference_mode():
        found = model(TEXT.token_ids).logits
    torch.testing.assert_close(found, expected, atol=2e-3 * float(expected.abs().max()), rtol=0)
    whole = outputs(subject_of(name, **fields).model)
    assert float((outputs(model) - whole).norm() / whole.norm()) > 0.02


@pytest.mark.parametrize(("name", "fields"), [(name, fields) for name, _, fields in CASES])
def test_all_dimensions_lose_nothing(name: str, fields: dict[str, Any]) -> None:
    expected = outputs(subject_of(name, **fields).model)
    assert_near(outputs(sliced(name, 1.0, **fields).model), expected)


def test_fewer_dimensions_lose_more() -> None:
    whole = outputs(tiny_model("llama"))
    lost = [float((outputs(sliced("llama", share).model) - whole).norm()) for share in (1.0, 0.875, 0.5, 0.25)]
    assert lost == sorted(lost)
    assert lost[0] < 0.01 * lost[1]


def test_parameters_are_those_counted_by_hand() -> None:
    channels, keys, tokens, positions = 128, 32, 260, 2048
    blocks = 2 * (2 * WIDTH * HIDDEN + 2 * WIDTH * keys + 3 * WIDTH * channels + 2 * WIDTH**2 + 2 * WIDTH)
    llama = sliced("llama", 0.75, tie_word_embeddings=True)
    assert count_parameters(llama.model) == blocks + WIDTH + 2 * tokens * WIDTH
    assert llama.claims["parameters"] == count_parameters(subject_of("llama", tie_word_embeddings=True).model)
    assert llama.claims["hidden_kept"] == 0.75
    weights = 4 * WIDTH * HIDDEN + 2 * WIDTH * channels + 2 * WIDTH**2 + 2 * WIDTH
    biases = 3 * HIDDEN + WIDTH + channels + WIDTH
    gpt2 = sliced("gpt2", 0.75)  # whose last norm has a shift, which becomes the head's bias
    assert count_parameters(gpt2.model) == 2 * (weights + biases) + WIDTH + (2 * tokens + positions) * WIDTH + tokens


def test_a_small_model_with_a_tied_head_may_have_more_than_before() -> None:
    sizes = {"tie_word_embeddings": True, "intermediate_size": 64}
    assert count_parameters(sliced("llama", 0.875, **sizes).model) > count_parameters(
        subject_of("llama", **sizes).model
    )


@pytest.mark.parametrize(
    ("hidden", "share", "expected"),
    [(576, 0.75, 432), (576, 0.7, 400), (64, 0.7, 48), (64, 0.01, 8), (64, 1, 64), (60, 0.99, 56), (60, 1, 60)],
)
def test_the_kept_dimensions_are_a_multiple_of_eight(hidden: int, share: float, expected: int) -> None:
    assert kept(hidden, share) == expected


def test_directions_are_orthonormal_and_see_no_lengths() -> None:
    """One token of a large state does not outweigh many: norms do not see how large it is."""
    states = torch.zeros((1, 4, 8))
    states[0, 0, 1], states[0, 1:, 2] = 1000.0, 1.0
    basis = directions(states, 2, centred=False)
    assert torch.allclose(basis, torch.eye(8)[:, [2, 1]], atol=1e-6)
    random = torch.randn((2, 50, 8), generator=torch.Generator().manual_seed(0)) + 3
    basis = directions(random, 7, centred=True)
    assert torch.allclose(basis.T @ basis, torch.eye(7), atol=1e-5)
    assert float(basis.mean(dim=0).abs().max()) < 1e-6


def test_few_tokens_leave_the_mean_out_of_all_other_directions() -> None:
    """Three tokens show two or three of eight dimensions; the others are as good as any, the mean's excepted."""
    states = torch.randn((1, 3, 8), generator=torch.Generator().manual_seed(0))
    basis = directions(states, 7, centred=True)
    assert torch.allclose(basis.T @ basis, torch.eye(7), atol=1e-5)
    basis = directions(states, 8, centred=True)
    assert torch.allclose(basis @ basis.T, torch.eye(8) - 1 / 8, atol=1e-5)


def later() -> Iterator[tuple[str, Technique]]:
    yield "rtn", RoundToNearest(8, None, symmetric=True)
    yield "gptq", GPTQ(8, 16, symmetric=True, act_order=True, static_groups=True, damping=0.01, sequential=True)
    yield "awq", AWQ(8, 16, symmetric=True, clip=False)
    yield "wanda", Wanda(0.5, None, sequential=True)
    yield "narrow", Narrow(0.5)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("step", [step for _, step in later()], ids=[name for name, _ in later()])
def test_other_steps_come_after_it(name: str, step: Technique, tmp_path: Path) -> None:
    subject = sliced(name, 0.75)
    before = outputs(subject.model)
    made = step.apply(subject, TEXT)
    found = outputs(made.model)
    error = float((found - before).norm() / before.norm())
    assert 0 < error < (0.9 if isinstance(step, Wanda | Narrow) else 0.05)
    artifact.save(made, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path, prepare=False).model), found)


@torch.inference_mode()
def apart(model: nn.Module) -> float:
    """Relative entropy to the uncompressed model over the calibration text, summed."""
    expected, found = (each(TEXT.token_ids).logits.log_softmax(-1) for each in (tiny_model("llama"), model))
    return float(relative_entropy(expected, found).sum())


def test_it_can_be_trained_afterwards(tmp_path: Path) -> None:
    subject = sliced("llama", 0.5)
    made = Recover(how="full", training_steps=8, windows=2, learning_rate=3e-3).apply(subject, TEXT)
    artifact.save(made, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path).model), outputs(made.model))
    assert apart(made.model) < 0.8 * apart(sliced("llama", 0.5).model)


def test_blocks_are_dropped_before_it() -> None:
    made = SliceGPT(0.75).apply(LayerDrop(0.5, "every_other").apply(tiny_subject("llama"), TEXT), TEXT)
    assert (made.claims["layers_kept"], made.claims["hidden_kept"]) == (0.5, 0.75)
    with pytest.raises(Unsupported, match="drop blocks, then slice"):
        LayerDrop(0.5, "every_other").apply(sliced("llama", 0.75), TEXT)


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_another_share_is_refused(share: float) -> None:
    with pytest.raises(Unsupported, match="expected more than 0, at most 1"):
        SliceGPT(share).apply(tiny_subject("llama"), TEXT)


def test_without_text_nothing_is_touched() -> None:
    subject = tiny_subject("llama")
    with pytest.raises(SqueezeError, match="slicegpt needs text"):
        SliceGPT(0.75).apply(subject, CalibrationText.empty())
    assert torch.equal(outputs(subject.model), outputs(tiny_model("llama")))


def test_an_encoder_is_refused_and_left_as_it_was() -> None:
    subject = tiny_subject("bert")
    with pytest.raises(Unsupported, match="bert models cannot be sliced"):
        SliceGPT(0.75).apply(subject, TEXT)
    assert torch.equal(outputs(subject.model), outputs(tiny_model("bert")))


def test_what_makes_the_model_anew_refuses_a_sliced_one(tmp_path: Path) -> None:
    subject = sliced("llama", 0.75)
    with pytest.raises(Unsupported, match="bitsandbytes makes the model anew"):
        _plain_linears(subject.model)
    artifact.save(RoundToNearest(8, None, symmetric=True).apply(subject, TEXT), tmp_path / "artifact")
    with pytest.raises(Unsupported, match="hidden states are sliced"):
        to_compressed_tensors(tmp_path / "artifact", tmp_path / "exported")


def test_it_stays_in_the_dtype_of_the_model() -> None:
    model = sliced("opt", 0.75, "bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    whole = outputs(tiny_model("opt"))
    single, half = (outputs(sliced("opt", 0.75, dtype).model).float() for dtype in ("float32", "bfloat16"))
    assert (half - single).norm() < 0.1 * whole.norm()
