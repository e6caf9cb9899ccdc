"""AWQ: folding changes no model, scales and clipping are the best of their grids, and large inputs are looked after."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import layer_specs
from squeeze.models import architecture
from squeeze.models.folding import folds
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import InputStatistics
from squeeze.techniques.quantization.awq import AWQ, EXPONENTS, SHARES
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (6, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


def awq(**fields) -> AWQ:
    return AWQ(**{"bits": 3, "group_size": 16, "symmetric": True, "clip": True, **fields})


def statistics(inputs: int = 64, large: int = 3) -> InputStatistics:
    """Of inputs some of whose channels are 30 times larger than the others."""
    x = torch.randn(512, inputs, generator=torch.Generator().manual_seed(1))
    x[:, :large] *= 30
    return InputStatistics(x.T @ x / len(x), x.abs().mean(0), x.amin(0), x.amax(0), len(x))


def loss(weight: torch.Tensor, approximation: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """(out_features,): the mean squared error of each output."""
    difference = (approximation - weight).double()
    return ((difference @ hessian.double()) * difference).sum(1)


def rounded(weight: torch.Tensor, technique: AWQ) -> torch.Tensor:
    grid = affine.fit(weight, technique.bits, technique.group_size or weight.shape[1], technique.symmetric)
    return grid.dequantize(grid.quantize(weight), torch.float32)


WEIGHT = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folding_leaves_the_model_as_it_was(name: str) -> None:
    model = tiny_model(name)
    expected = model(TOKEN_IDS)[0]
    generator = torch.Generator().manual_seed(0)
    for block in architecture.blocks(model):
        for fold in folds(model):
            before = architecture.weight(block.get_submodule(fold.consumers[0])).clone()
            fold.apply(block, torch.rand(before.shape[1], generator=generator) * 3 + 0.2)
            assert not torch.equal(architecture.weight(block.get_submodule(fold.consumers[0])), before)
    torch.testing.assert_close(model(TOKEN_IDS)[0], expected, rtol=1e-4, atol=1e-4)


def opt(**changes) -> torch.nn.Module:
    config = OPTConfig(
        vocab_size=260,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        **changes,
    )
    return AutoModelForCausalLM.from_config(config)


def test_what_would_not_be_exact_is_not_folded() -> None:
    assert [fold.producer for fold in folds(tiny_model("llama"))] == [
        "input_layernorm",
        "post_attention_layernorm",
        "mlp.up_proj",
    ]  # queries share their values: one value channel is read through several input channels
    assert len(folds(opt())) == 4
    assert [fold.producer for fold in folds(opt(activation_function="gelu"))][-1] == "final_layer_norm"
    assert [fold.producer for fold in folds(opt(do_layer_norm_before=False))] == ["self_attn.v_proj", "fc1"]


def test_the_grids_are_those_of_the_authors_code() -> None:
    assert list(EXPONENTS) == pytest.approx(torch.arange(0, 1, 0.05).tolist())
    assert list(SHARES) == pytest.approx(torch.arange(1, 0.5, -0.05).tolist())


def test_scales_are_the_best_of_the_grid() -> None:
    technique, inputs = awq(), statistics()
    found = technique.scales([WEIGHT[:16], WEIGHT[16:]], inputs)
    losses = {}
    for alpha in EXPONENTS:
        scales = inputs.mean_abs.pow(alpha)
        scales /= (scales.max() * scales.min()).sqrt()
        losses[alpha] = loss(WEIGHT, rounded(WEIGHT * scales, technique) / scales, inputs.hessian).sum(), scales
    least, best = min(losses.values(), key=lambda pair: pair[0])
    assert torch.allclose(found, best)
    assert least < 0.5 * losses[0.0][0]
    assert (found[:3].min() / found[3:].max()) > 1.5  # large inputs make their weights large


def test_inputs_without_outliers_need_no_scales() -> None:
    even = InputStatistics(torch.eye(64), torch.ones(64), -torch.ones(64), torch.ones(64), 1)
    assert torch.equal(awq().scales([WEIGHT], even), torch.ones(64))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, None])
def test_clipping_is_the_best_of_the_grid_group_by_group(group_size: int | None, symmetric: bool) -> None:
    technique, hessian = awq(group_size=group_size, symmetric=symmetric), statistics(large=0).hessian
    found, size = technique.clipped(WEIGHT, hessian), group_size or 64
    cut_somewhere = False
    for start in range(0, 64, size):
        span = slice(start, start + size)
        group, own = WEIGHT[:, span], hessian[span, span]
        limits = group.abs().amax(1, keepdim=True)
        cuts = [group.clamp(-share * limits, share * limits) for share in SHARES]
        losses = torch.stack(
            [loss(group, rounded(cut, awq(group_size=None, symmetric=symmetric)), own) for cut in cuts]
        )
        ours = loss(group, rounded(found[:, span], awq(group_size=None, symmetric=symmetric)), own)
        torch.testing.assert_close(ours, losses.amin(0), rtol=1e-4, atol=0)
        cut_somewhere |= bool((losses.amin(0) < losses[0]).any())
    assert cut_somewhere


def test_a_layer_is_clipped_for_the_inputs_that_it_then_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales leave the outputs as they were; llama's down_proj, gate_proj and v_proj are not themselves producers."""
    energies: list[torch.Tensor] = []

    def note(_: AWQ, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        energies.append(((weight @ hessian) * weight).sum(1))
        return weight

    def energy(name: str) -> torch.Tensor:
        weight = architecture.weight(block.get_submodule(name))
        return ((weight @ inputs[name].hessian) * weight).sum(1)

    _, block, inputs = next(iter(CALIBRATION.input_statistics(tiny_model("llama"))))
    expected = {name: energy(name) for name in inputs if name.endswith(("v_proj", "gate_proj", "down_proj"))}
    clipped = [name for name in inputs if not name.endswith(("q_proj", "k_proj"))]
    monkeypatch.setattr(AWQ, "clipped", note)
    awq().apply(tiny_subject("llama"), CALIBRATION)
    found = dict(zip(clipped, energies, strict=False))
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_lose_less_than_by_rounding_to_nearest(name: str, clip: bool) -> None:
    expected = tiny_model(name)(TOKEN_IDS)[0]
    nearest = RoundToNearest(3, 16, True).apply(tiny_subject(name), CALIBRATION).model(TOKEN_IDS)[0]
    subject = awq(clip=clip).apply(tiny_subject(name), CALIBRATION)
    assert (subject.model(TOKEN_IDS)[0] - expected).norm() < (nearest - expected).norm()
    assert len(layer_specs(subject.model)) == len(architecture.block_linears(tiny_model(name)))


@pytest.mark.parametrize(
    ("name", "unscaled"),
    [
        ("llama", ["self_attn.o_proj"]),
        ("gpt2", ["mlp.c_proj"]),
        ("opt", []),
        ("gpt_neox", ["mlp.dense_4h_to_h"]),
        (
            "bert",
            [
                "attention.self.key",
                "attention.self.query",
                "attention.self.value",
                "intermediate.dense",
                "output.dense",
            ],
        ),
    ],
)
def test_layers_that_kept_their_scale_are_named(name: str, unscaled: list[str]) -> None:
    claims = awq().apply(tiny_subject(name), CALIBRATION).claims
    assert claims == {"bits": 3, "group_size": 16, "symmetric": True, "hessian": "shared", "unscaled": unscaled}


def test_queries_and_keys_are_not_clipped() -> None:
    clipped, plain = (awq(clip=clip).apply(tiny_subject("llama"), CALIBRATION).model for clip in (True, False))
    same = {
        name: torch.equal(
            clipped.get_submodule(f"model.layers.0.self_attn.{name}").scales,
            plain.get_submodule(f"model.layers.0.self_attn.{name}").scales,
        )
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    assert same == {"q_proj": True, "k_proj": True, "v_proj": False, "o_proj": False}


def test_an_architecture_without_folds_is_refused_before_any_work() -> None:
    subject = tiny_subject("llama")
    subject.model.config.model_type = "mamba"
    with pytest.raises(Unsupported, match="cannot be folded in mamba models; those known: llama"):
        awq().apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 5}, "no 5-bit codes; bits that work: 8, 4, 3, 2"),
        ({"group_size": 48}, "group_size 48 does not divide in_features 64"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(fields: dict[str, int], message: str) -> None:
    subject: Subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        awq(**fields).apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)
