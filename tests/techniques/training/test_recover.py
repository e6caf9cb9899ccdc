"""Recovery: nearer to the uncompressed model, and compressed as before: zeros, sharing, codes, fewer layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.codebook import CodebookLinear
from squeeze.layers.contract import count_parameters, matrices
from squeeze.layers.lora import LoraLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.recount import recount
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import divergence
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.bitsandbytes import Float4, LLMInt8
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.smoothquant import SmoothQuant
from squeeze.techniques.training import recover
from squeeze.techniques.training.lora import LoRA
from squeeze.techniques.training.recover import Recover
from tests.dying import dies_at
from tests.tiny import tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
DTYPES = ["float32", "bfloat16"]


def calibration(dtype: str = "float32", name: str = "llama", **fields: Any) -> CalibrationText:
    return CalibrationText(TOKEN_IDS, held_out=HELD_OUT, load_baseline=lambda: tiny_model(name, dtype), **fields)


def technique(how: str = "full", **fields: Any) -> Recover:
    adapter = {"rank": 4, "lora_alpha": 8, "learning_rate": 1e-2} if how == "lora" else {"learning_rate": 1e-3}
    return Recover(**{"how": how, "training_steps": 4, "windows": 2, **adapter, **fields})


def wanda(dtype: str = "float32", run: int | None = None, name: str = "llama") -> Subject:
    return Wanda(0.5, run, sequential=True).apply(tiny_subject(name, dtype), calibration(dtype, name))


def rounded(dtype: str = "float32") -> Subject:
    return RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama", dtype), CalibrationText.empty())


def clustered(dtype: str = "float32") -> Subject:
    return KMeans(2, 16).apply(tiny_subject("llama", dtype), CalibrationText.empty())


def in_nf4(dtype: str = "bfloat16") -> Subject:
    return Float4("nf4", False).apply(tiny_subject("llama", dtype), CalibrationText.empty())


def in_int8(dtype: str = "float32") -> Subject:
    return SmoothQuant(0.5).apply(tiny_subject("llama", dtype), calibration(dtype))


def of_one_layer(dtype: str = "float32") -> Subject:
    subject = tiny_subject("llama", dtype)
    del subject.model.model.layers[1]
    subject.model.config.num_hidden_layers = 1
    return subject


@torch.no_grad()
def distances(model: nn.Module, teacher: nn.Module) -> list[float]:
    """From the teacher, on text that it was trained on and on other text."""
    return [float(divergence(model, teacher, token_ids, 1.0)) for token_ids in (TOKEN_IDS, HELD_OUT)]


@torch.no_grad()
def logits(subject: Subject) -> torch.Tensor:
    return subject.model(HELD_OUT).logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("make", "how"),
    [(wanda, "full"), (wanda, "lora"), (of_one_layer, "full"), (of_one_layer, "lora"), (rounded, "lora")],
)
def test_it_comes_nearer_to_the_uncompressed_model(make: Any, how: str, dtype: str, tmp_path: Path) -> None:
    subject, teacher = make(dtype), tiny_model("llama", dtype)
    before = distances(subject.model, teacher)
    recovered = technique(how, training_steps=24).apply(subject, calibration(dtype))
    after = distances(recovered.model, teacher)
    assert after[0] < 0.9 * before[0]
    if how == "full":  # rank 4 wins back what the text shows of random weights, which are of full rank
        assert after[1] < before[1]
    artifact.save(recovered, tmp_path)
    assert torch.equal(logits(artifact.load(tmp_path, prepare=False)), logits(recovered))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize("run", [None, 4])
def test_zeros_stay_zeros(run: int | None, how: str, name: str, tmp_path: Path) -> None:
    subject = wanda(run=run, name=name)
    zeros = {path: layer.dequantize() == 0 for path, layer in matrices(subject.model)}
    recovered = technique(how).apply(subject, calibration(name=name))
    layers = dict(matrices(recovered.model))
    assert {type(layer) for layer in layers.values()} == {SparseLinear}
    for path, zero in zeros.items():
        assert torch.equal(layers[path].dequantize() == 0, zero)
        if run:
            assert (zero.view(len(zero), -1, run).sum(-1) == run // 2).all()
    artifact.save(recovered, tmp_path)
    found = recount(tmp_path, artifact.load(tmp_path, prepare=False), tiny_model(name))
    assert found.sparsity == pytest.approx(0.5, abs=1e-4)
    assert found.mismatches(recovered.claims) == []


@pytest.mark.parametrize("make", [rounded, in_nf4, in_int8])
def test_codes_stay_and_a_change_lies_beside_them(make: Any, tmp_path: Path) -> None:
    subject = make()
    dtype = str(subject.model.dtype).removeprefix("torch.")
    artifact.save(subject, tmp_path / "before")
    recovered = technique("lora").apply(subject, calibration(dtype))
    artifact.save(recovered, tmp_path / "after")
    before, after = (tmp_path / name / "model.safetensors" for name in ("before", "after"))
    assert before.read_bytes() == after.read_bytes()
    layers = [layer for _, layer in matrices(recovered.model)]
    assert {type(layer) for layer in layers} == {LoraLinear}
    assert all(layer.lora_B.abs().max() > 0 for layer in layers)
    assert recovered.claims["bits"] == subject.claims["bits"]
    running = artifact.load(tmp_path / "after")
    tolerance = 0.05 * float(logits(recovered).float().abs().max())
    assert torch.allclose(logits(running).float(), logits(recovered).float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_stay_and_the_values_that_weights_share_are_trained(dtype: str, tmp_path: Path) -> None:
    subject, teacher = clustered(dtype), tiny_model("llama", dtype)
    codes = {path: layer.codes.clone() for path, layer in matrices(subject.model)}
    values = sum(layer.codebooks.numel() for _, layer in matrices(subject.model))
    before = distances(subject.model, teacher)
    recovered = technique(training_steps=24).apply(subject, calibration(dtype))
    assert distances(recovered.model, teacher)[0] < before[0]
    for path, layer in matrices(recovered.model):
        assert type(layer) is CodebookLinear
        assert torch.equal(layer.codes, codes[path])
    assert recovered.claims["trainable_parameters"] == values
    artifact.save(recovered, tmp_path)
    stored = artifact.load(tmp_path, prepare=False)
    assert torch.equal(logits(stored), logits(recovered))
    assert recount(tmp_path, stored, teacher).mismatches(recovered.claims) == []


def test_after_whole_numbers_it_comes_nearer_too() -> None:
    """Trained as if activations were not rounded, of layers that round them."""
    subject, teacher = in_int8(), tiny_model("llama")
    before = distances(subject.model, teacher)
    recovered = technique("lora", learning_rate=1e-3, training_steps=16).apply(subject, calibration())
    after = distances(recovered.model, teacher)
    assert after[0] < before[0]


def test_layers_of_floats_are_merged_into() -> None:
    everything = 4 * 1024 + count_parameters(of_one_layer().model)
    recovered = technique("lora").apply(of_one_layer(), calibration())
    assert {type(layer) for _, layer in matrices(recovered.model)} == {nn.Linear}
    assert recovered.claims == {
        "training_tokens": 4 * 2 * 32,
        "trainable_parameters": 4 * 1024,
        "trainable_share": round(4 * 1024 / everything, 6),
    }


def test_the_trained_share_of_adapters_is_the_one_that_peft_counts() -> None:
    """Of a packed base, too, whose tensors hold two weights in a byte; of all weights, nobody asks for a share."""
    ours = technique("lora").apply(in_nf4(), calibration("bfloat16")).claims
    theirs = adapters(rank=4).apply(in_nf4(), calibration("bfloat16")).claims
    assert ours["trainable_parameters"] == theirs["trainable_parameters"]
    assert ours["trainable_share"] == theirs["trainable_share"]
    assert "trainable_share" not in technique("full").apply(of_one_layer(), calibration()).claims


def test_what_blocks_share_they_share_afterwards(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    first, second = subject.model.model.layers
    second.mlp = first.mlp
    before = distances(subject.model, tiny_model("llama"))
    recovered = technique(training_steps=16).apply(subject, calibration())
    assert distances(recovered.model, tiny_model("llama"))[0] < 0.9 * before[0]
    first, second = recovered.model.model.layers
    assert first.mlp.up_proj is second.mlp.up_proj
    weights = sum(architecture.weight(layer).numel() for layer in architecture.linears(first).values())
    own = sum(architecture.weight(layer).numel() for layer in architecture.linears(second.self_attn).values())
    assert recovered.claims["trainable_parameters"] == weights + own
    artifact.save(recovered, tmp_path)
    assert len(artifact.describe(tmp_path)["tied"]) == 3
    assert torch.equal(logits(artifact.load(tmp_path)), logits(recovered))


def test_all_else_stays_as_it_was() -> None:
    before = {name: tensor.clone() for name, tensor in of_one_layer().model.state_dict().items()}
    after = technique().apply(of_one_layer(), calibration()).model
    changed = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.weight" for name in architecture.block_linears(after)}
    assert not any(parameter.requires_grad for parameter in after.parameters())


def test_the_loss_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], recover.distilled

    def spy(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(recover, "distilled", spy)
    asked = technique(divergence="jsd", temperature=2.0, alpha=0.5, training_steps=1)
    asked.apply(of_one_layer(), calibration())
    assert {(each.kind, each.temperature, each.alpha) for each in seen} == {("jsd", 2.0, 0.5)}


@pytest.mark.parametrize(("make", "how"), [(wanda, "full"), (wanda, "lora"), (rounded, "lora")])
def test_a_killed_training_goes_on_to_the_same_layers(
    make: Any, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    steps = technique(how, training_steps=5)
    whole = steps.apply(make(), calibration()).model.state_dict()
    dies_at(monkeypatch, recover, "distilled", 6)
    with pytest.raises(KeyboardInterrupt):
        steps.apply(make(), calibration(workplace=Workplace(tmp_path)))
    assert list(tmp_path.rglob("*.safetensors"))
    continued = steps.apply(make(), calibration(workplace=Workplace(tmp_path))).model
    assert all(torch.equal(tensor, whole[name]) for name, tensor in continued.state_dict().items())


def adapters(rank: int) -> LoRA:
    schedule = {"training_steps": 1, "windows": 1, "learning_rate": 1e-3}
    options = {"rslora": False, "dora": False, "start": "kaiming", "targets": "linear", "loss": "next_token"}
    return LoRA(rank=rank, lora_alpha=2, merge=False, **options, **schedule)


def adapted() -> Subject:
    return adapters(rank=2).apply(tiny_subject("llama"), calibration())


def in_library_int8() -> Subject:
    return LLMInt8(6.0).apply(tiny_subject("llama", "bfloat16"), CalibrationText.empty())


@pytest.mark.parametrize(
    ("make", "asked", "said"),
    [
        (lambda: tiny_subject("bert"), technique(), "no language-modelling head"),
        (of_one_layer, technique("half"), "no how: 'half'; expected full or lora"),
        (of_one_layer, technique(divergence="l2"), "no divergence 'l2'; expected forward, reverse, jsd"),
        (of_one_layer, technique("lora", rank=None), "found rank None and lora_alpha 8"),
        (of_one_layer, technique("lora", rank=33), "rank is 33, but .*k_proj has one of 32 at the most"),
        (rounded, technique(), "is a QuantizedLinear, whose codes cannot be trained; how: lora"),
        (in_nf4, technique(), "is a Linear4bit, whose codes cannot be trained; how: lora"),
        (in_library_int8, technique("lora"), "is a Linear8bitLt, through which no gradients pass"),
        (adapted, technique("lora"), "has an adapter already"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(make: Any, asked: Recover, said: str) -> None:
    subject = make()
    before = copy.copy(dict(subject.model.named_modules()))
    with pytest.raises(Unsupported, match=said):
        asked.apply(subject, CalibrationText(TOKEN_IDS))
    assert dict(subject.model.named_modules()) == before
