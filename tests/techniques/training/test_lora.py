"""LoRA through peft: adapters alone are trained, on floats and nf4; merged or beside the base, logits are the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, initialization

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_compressed, matrices
from squeeze.layers.lora import LoraLinear, matrix_of
from squeeze.layers.trainable import gradients_pass
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.losses import divergence, next_token
from squeeze.techniques.quantization.bitsandbytes import Float4, LLMInt8
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from squeeze.techniques.training.lora import LoRA, start_from_residual
from tests.students import subject_of
from tests.tiny import tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
NO_DATA = CalibrationText.empty()


def calibration(name: str = "llama", dtype: str = "float32") -> CalibrationText:
    return CalibrationText(TOKEN_IDS, held_out=HELD_OUT, load_baseline=lambda: tiny_model(name, dtype))


def technique(**fields: Any) -> LoRA:
    defaults = {"rank": 4, "lora_alpha": 8, "rslora": False, "dora": False, "start": "kaiming", "targets": "linear"}
    schedule = {"loss": "next_token", "merge": False, "training_steps": 4, "windows": 2, "learning_rate": 1e-2}
    return LoRA(**{**defaults, **schedule, **fields})


def in_nf4(name: str = "llama", double_quant: bool = False) -> Subject:
    return Float4("nf4", double_quant).apply(tiny_subject(name, "bfloat16"), NO_DATA)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(HELD_OUT).logits.float()


def test_gpt2_has_the_paper_s_number_of_trainable_parameters() -> None:
    """On c_attn, which peft names for it: 12 x 8 x (768 + 2,304) of all that there are then."""
    with initialization.no_init_weights():
        model = GPT2LMHeadModel._from_config(GPT2Config())
    model.tie_weights()  # which goes with the initialisation
    adapted = technique(rank=8, targets="peft").adapted(model, seed=0)
    trainable, everything = adapted.get_nb_trainable_parameters()
    assert (trainable, everything) == (294_912, 124_734_720)
    assert round(100 * trainable / everything, 3) == 0.236


def test_what_it_claims_of_what_it_trained() -> None:
    claims = technique(rank=4, targets="peft").apply(tiny_subject("gpt2"), calibration("gpt2")).claims
    trained = 2 * 4 * (64 + 192)
    everything = trained + sum(parameter.numel() for parameter in tiny_model("gpt2").parameters())
    assert claims == {
        "training_tokens": 4 * 2 * 32,
        "trainable_parameters": trained,
        "trainable_share": round(trained / everything, 6),
    }


@pytest.mark.parametrize(
    ("targets", "expected"),
    [("linear", {"q", "k", "v", "o", "gate", "up", "down"}), ("attention", {"q", "k", "v", "o"}), ("peft", {"q", "v"})],
)
def test_only_what_is_named_is_adapted(targets: str, expected: set[str]) -> None:
    model = technique(targets=targets).apply(tiny_subject("llama"), calibration()).model
    adapted = {name for name, layer in matrices(model) if isinstance(layer, LoraLinear)}
    assert {name.rpartition(".")[2].removesuffix("_proj") for name in adapted} == expected
    assert len(adapted) == 2 * len(expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"rslora": True}, {"dora": True}, {"start": "pissa"}, {"start": "pissa", "dora": True, "rslora": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_it_is_a_plain_model_of_the_same_logits(name: str, options: dict[str, Any]) -> None:
    beside, merged = (
        technique(merge=merge, **options).apply(tiny_subject(name), calibration(name)).model for merge in (False, True)
    )
    assert (logits(merged) - logits(tiny_model(name))).abs().max() > 0.01
    assert torch.allclose(logits(merged), logits(beside), atol=1e-4)
    plain = tiny_model(name)
    assert not any(is_compressed(module) for module in merged.modules())
    assert {path: type(module) for path, module in merged.named_modules()} == {
        path: type(module) for path, module in plain.named_modules()
    }
    assert not hasattr(merged, "peft_config")
    assert not any(parameter.requires_grad for parameter in (*merged.parameters(), *beside.parameters()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_the_text_and_the_base_stays_what_it_was(dtype: str) -> None:
    before = tiny_model("llama", dtype)
    after = technique(training_steps=20).apply(tiny_subject("llama", dtype), calibration(dtype=dtype)).model
    with torch.no_grad():
        assert next_token(after, TOKEN_IDS) < 0.99 * next_token(before, TOKEN_IDS)
    bases = {name.replace(".base", ""): tensor for name, tensor in after.state_dict().items() if "lora_" not in name}
    assert bases.keys() == before.state_dict().keys()
    assert all(torch.equal(bases[name], tensor) for name, tensor in before.state_dict().items())
    adapters = [layer for _, layer in matrices(after)]
    assert all(layer.lora_B.abs().max() > 0 for layer in adapters)
    assert {layer.lora_A.dtype for layer in adapters} == {getattr(torch, dtype)}


def test_a_seed_draws_it_and_torchs_own_generator_stays_where_it_was() -> None:
    before = torch.get_rng_state()
    pairs = []
    for seed in (0, 0, 1):
        model = tiny_model("llama")
        technique().adapted(model, seed)
        pairs.append(model.get_submodule("model.layers.0.mlp.up_proj").lora_A["default"].weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(pairs[0], pairs[1])
    assert not torch.equal(pairs[0], pairs[2])


def test_pissa_starts_as_the_model_it_adapts_with_its_largest_triples() -> None:
    model, plain = tiny_model("llama"), tiny_model("llama")
    technique(start="pissa").adapted(model, seed=0)
    assert torch.allclose(logits(model), logits(plain), atol=1e-4)
    name = "model.layers.0.mlp.up_proj"
    layer, weight = model.get_submodule(name), architecture.weight(plain.get_submodule(name))
    left, whole = torch.linalg.svdvals(layer.base_layer.weight), torch.linalg.svdvals(weight)
    assert torch.allclose(left[:60], whole[4:], atol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: tiny_subject("llama", "bfloat16"), lambda: tiny_subject("gpt2", "bfloat16"), in_nf4]
)
def test_dora_starts_as_the_model_that_it_adapts(make: Any) -> None:
    """But for stray roundings: lengths of rows in bfloat16 would scale whole rows, by up to 0.4 %."""
    plain, hardly_trained = make().model, technique(dora=True, training_steps=1, learning_rate=1e-30)
    started = hardly_trained.apply(make(), calibration(dtype="bfloat16")).model
    with gradients_pass(plain), gradients_pass(started):  # the layout in which the lengths were measured
        assert (logits(started) != logits(plain)).float().mean() < 0.01


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_base_that_has_run_is_trained_as_it_was_packed(double_quant: bool) -> None:
    """On some processors a run packs codes and scales anew; rows of several blocks show whether these are put back."""
    name = "model.layers.0.mlp.down_proj"
    fresh, ran = (in_nf4(double_quant=double_quant).model for _ in range(2))
    logits(ran)
    with gradients_pass(fresh), gradients_pass(ran):
        expected, found = (matrix_of(model.get_submodule(name), torch.bfloat16).float() for model in (fresh, ran))
    assert expected.shape[1] > 64, "of one block each"
    assert torch.allclose(found, expected, rtol=2**-6, atol=0)


def test_loftq_starts_nearer_to_the_weights_than_rounding_left_them() -> None:
    """By just the largest triples of what is lost, which the scale of the change is divided by."""
    model, plain = in_nf4().model, tiny_model("llama", "bfloat16")
    technique(start="loftq", rslora=True).adapted(model, seed=0)
    start_from_residual(model, plain)
    for name, original in architecture.block_linears(plain).items():
        layer = model.get_submodule(name)
        base, weight = matrix_of(layer.base_layer, torch.bfloat16).float(), architecture.weight(original).float()
        pair = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        left = weight - base - layer.scaling["default"] * (pair[1] @ pair[0])
        expected = torch.linalg.svdvals(weight - base)[4:].norm()
        assert float(left.norm()) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"start": "loftq"}, {"dora": True}], ids=str)
@pytest.mark.parametrize("double_quant", [False, True])
def test_on_nf4_the_packed_base_stays_and_the_change_is_saved_beside_it(
    options: dict[str, Any], double_quant: bool, tmp_path: Path
) -> None:
    artifact.save(in_nf4(double_quant=double_quant), tmp_path / "base")
    subject = technique(**options).apply(in_nf4(double_quant=double_quant), calibration(dtype="bfloat16"))
    artifact.save(subject, tmp_path / "adapted")
    base, adapted = (tmp_path / name / "model.safetensors" for name in ("base", "adapted"))
    assert base.read_bytes() == adapted.read_bytes()
    expected, loaded = logits(subject.model), artifact.load(tmp_path / "adapted", prepare=False)
    assert torch.equal(logits(loaded.model), expected)
    assert (expected - logits(in_nf4(double_quant=double_quant).model)).abs().max() > 0.01
    assert loaded.claims["bits"] == 4


def test_on_nf4_gradients_reach_every_adapter_even_if_the_model_has_run_before() -> None:
    """On some processors a run packs the codes anew, in a layout that has no gradients."""
    subject, teacher = in_nf4(), tiny_model("llama", "bfloat16")
    with torch.no_grad():
        distance = divergence(subject.model, teacher, TOKEN_IDS, 1.0)
    trained = technique(loss="distilled", training_steps=20).apply(subject, calibration(dtype="bfloat16")).model
    layers = [layer for _, layer in matrices(trained)]
    assert all(layer.lora_B.abs().max() > 0 for layer in layers)
    assert not any(layer.base.training for layer in layers)
    with torch.no_grad():
        assert divergence(trained, teacher, TOKEN_IDS, 1.0) < 0.8 * distance


def rounded() -> Subject:
    return RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_DATA)


def int8() -> Subject:
    return LLMInt8(6.0).apply(tiny_subject("llama", "bfloat16"), NO_DATA)


@pytest.mark.parametrize(
    ("subject", "options", "said"),
    [
        (lambda: tiny_subject("bert"), {}, "no language-modelling head"),
        (lambda: tiny_subject("llama"), {"start": "gaussian"}, "no start 'gaussian'; expected kaiming, pissa, loftq"),
        (lambda: tiny_subject("llama"), {"targets": "mlp"}, "no targets 'mlp'; expected linear, attention, peft"),
        (lambda: tiny_subject("llama"), {"loss": "mse"}, "no loss 'mse'; expected next_token, distilled"),
        (lambda: tiny_subject("llama"), {"rank": 33}, "rank is 33, but .*k_proj has one of 32 at the most"),
        (lambda: tiny_subject("llama"), {"start": "loftq"}, "expected bitsandbytes nf4 before it"),
        (rounded, {}, "is a QuantizedLinear, but peft adapts .* recover.Recover"),
        (int8, {}, "is a Linear8bitLt, but peft adapts"),
        (in_nf4, {"merge": True}, "merge: true changes a base of floats"),
        (in_nf4, {"start": "pissa"}, "start: pissa changes a base of floats"),
        (in_nf4, {"start": "loftq", "dora": True}, "use start: kaiming"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(subject: Any, options: dict[str, Any], said: str) -> None:
    made = subject()
    before = copy.copy(dict(made.model.named_modules()))
    with pytest.raises(Unsupported, match=said):
        technique(**options).apply(made, CalibrationText(TOKEN_IDS))
    assert dict(made.model.named_modules()) == before


def without_a_block(subject: Subject) -> Subject:
    del subject.model.model.layers[1]
    return subject


@pytest.mark.parametrize(
    ("change", "teacher", "said"),
    [
        (without_a_block, {}, "wants the 2 blocks of the uncompressed model, found 1"),
        (lambda subject: subject, {"intermediate_size": 256}, "mlp.gate_proj is 128 x 64 here and 256 x 64 there"),
    ],
)
def test_loftq_is_refused_where_layers_are_not_the_teacher_s(change: Any, teacher: dict[str, int], said: str) -> None:
    subject = change(in_nf4())
    before = dict(subject.model.named_modules())
    text = CalibrationText(TOKEN_IDS, load_baseline=lambda: subject_of("llama", "bfloat16", **teacher).model)
    with pytest.raises(Unsupported, match=said):
        technique(start="loftq").apply(subject, text)
    assert dict(subject.model.named_modules()) == before


def test_blocks_that_share_layers_are_refused() -> None:
    subject = SharedBlocks().apply(tiny_subject("llama"), CalibrationText.empty())
    with pytest.raises(Unsupported, match="of which peft adapts one place alone; use recover with how: lora"):
        technique().apply(subject, calibration())
