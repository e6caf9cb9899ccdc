"""An adapter lies beside its base in peft's own folder; peft and squeeze put it back, on that base alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from squeeze.artifacts import adapter
from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
from squeeze.artifacts.exports.gptq import to_gptq
from squeeze.core.errors import IntegrityError, Unsupported
from squeeze.layers.contract import matrices
from squeeze.layers.lora import LoraLinear, features
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.bitsandbytes import Float4
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.lora import keep_beside
from tests.tiny import CAUSAL, tiny_subject

TOKEN_IDS = torch.arange(24).reshape(2, 12)
NO_DATA = CalibrationText.empty()


def adapted(subject: Subject, seed: int = 0, only: str = "", dora: bool = False) -> Subject:
    """The subject, each matrix whose name has ``only`` in it with a change of rank 4."""
    generator = torch.Generator().manual_seed(seed)
    dtype = architecture.dtype(subject.model)
    for name, layer in [(name, layer) for name, layer in matrices(subject.model) if only in name]:
        rows, columns = features(layer)
        pair = torch.randn(4, columns, generator=generator) / 8, torch.randn(rows, 4, generator=generator) / 8
        lengths = torch.rand(rows, generator=generator) if dora else None
        beside = LoraLinear.of(layer, *(tensor.to(dtype) for tensor in pair), lengths, alpha=8, dtype=dtype)
        architecture.replace(subject.model, name, beside)
    return subject


@torch.inference_mode()
def logits(subject: Subject) -> torch.Tensor:
    return subject.model(TOKEN_IDS).logits.float()


def rounded(subject: Subject) -> Subject:
    return RoundToNearest(4, 32, symmetric=True).apply(subject, NO_DATA)


def in_nf4(subject: Subject) -> Subject:
    return Float4("nf4", False).apply(subject, NO_DATA)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", [lambda subject: subject, rounded, in_nf4], ids=["plain", "rtn", "nf4"])
def test_it_is_loaded_bit_for_bit(base: Any, dtype: str, dora: bool, tmp_path: Path) -> None:
    subject = adapted(base(tiny_subject("llama", dtype)), dora=dora)
    artifact.save(subject, tmp_path)
    expected = logits(subject)
    stored, running = artifact.load(tmp_path, prepare=False), artifact.load(tmp_path)
    assert {type(layer) for _, layer in matrices(stored.model)} == {LoraLinear}
    assert torch.equal(logits(stored), expected)
    tolerance = 1e-4 if dtype == "float32" and base is not in_nf4 else 0.05
    assert torch.allclose(logits(running), expected, atol=tolerance * float(expected.abs().max()), rtol=0)
    assert isinstance(subject.model.get_submodule("model.layers.0.mlp.up_proj"), LoraLinear)  # saving changes nothing


@pytest.mark.parametrize("base", [lambda subject: subject, rounded, in_nf4], ids=["plain", "rtn", "nf4"])
def test_many_adapters_cost_one_base(base: Any, tmp_path: Path) -> None:
    artifact.save(base(tiny_subject("llama", "bfloat16")), tmp_path / "base")
    for seed in range(2):
        artifact.save(adapted(base(tiny_subject("llama", "bfloat16")), seed), tmp_path / str(seed))
    weights = [tmp_path / name / "model.safetensors" for name in ("base", "0", "1")]
    assert len({path.read_bytes() for path in weights}) == 1
    named = json.loads((tmp_path / "0" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == f"sha256:{hashlib.sha256(weights[0].read_bytes()).hexdigest()}"
    first, second = (artifact.load(tmp_path / name) for name in ("0", "1"))
    shutil.rmtree(tmp_path / "1" / "adapter")
    shutil.copytree(tmp_path / "0" / "adapter", tmp_path / "1" / "adapter")
    assert torch.equal(logits(artifact.load(tmp_path / "1")), logits(first))
    assert not torch.equal(logits(second), logits(first))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("name", "only"), [*((name, "") for name in CAUSAL), ("gpt2", "c_attn"), ("llama", "q_proj")])
def test_peft_puts_it_on_the_plain_base(name: str, only: str, dora: bool, tmp_path: Path) -> None:
    subject = adapted(tiny_subject(name), only=only, dora=dora)
    artifact.save(subject, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        bare = base(TOKEN_IDS).logits
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")(TOKEN_IDS).logits
    assert (bare - theirs).abs().max() > 0.1
    assert torch.allclose(theirs, logits(subject), atol=1e-4)


def test_peft_puts_it_on_the_base_that_bitsandbytes_holds(tmp_path: Path) -> None:
    subject = adapted(in_nf4(tiny_subject("llama", "bfloat16")))
    artifact.save(subject, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(TOKEN_IDS).logits.float()
    assert torch.allclose(theirs, logits(subject), atol=0.05 * float(theirs.abs().max()))


@pytest.mark.parametrize("dora", [False, True])
def test_the_folder_is_what_peft_writes(dora: bool, tmp_path: Path) -> None:
    subject = tiny_subject("gpt2")
    config = LoraConfig(r=4, lora_alpha=8, use_dora=dora, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    theirs = get_peft_model(subject.model, config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path / "theirs")
    keep_beside(subject.model)
    artifact.save(subject, tmp_path / "ours")
    tensors, expected = (
        load_file(folder / adapter.WEIGHTS) for folder in (tmp_path / "ours" / "adapter", tmp_path / "theirs")
    )
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    ours, wanted = (LoraConfig.from_pretrained(path) for path in (tmp_path / "ours" / "adapter", tmp_path / "theirs"))
    differing = {name for name, value in vars(wanted).items() if value != vars(ours)[name]}
    assert differing <= {"base_model_name_or_path", "target_modules"}
    assert {name.rpartition(".")[2] for name in ours.target_modules} == {"c_attn", "c_fc"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    artifact.save(adapted(tiny_subject("llama")), tmp_path / "artifact")
    return tmp_path / "artifact"


def test_it_is_refused_on_another_base(saved: Path, tmp_path: Path) -> None:
    artifact.save(tiny_subject("llama", seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    with pytest.raises(IntegrityError, match="its adapter belongs to the base sha256:"):
        artifact.load(saved)


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _truncated(folder: Path) -> None:
    path = folder / adapter.WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])


def _of_other_shapes(folder: Path) -> None:
    tensors = load_file(folder / adapter.WEIGHTS)
    save_file({name: tensor[:, :2].contiguous() for name, tensor in tensors.items()}, folder / adapter.WEIGHTS)


def _of_other_layers(folder: Path) -> None:
    tensors = load_file(folder / adapter.WEIGHTS)
    save_file({name.replace("layers.1", "layers.7"): each for name, each in tensors.items()}, folder / adapter.WEIGHTS)


def _of_embeddings(folder: Path) -> None:
    tensors = load_file(folder / adapter.WEIGHTS)
    renamed = {name.replace("layers.1.mlp.up_proj", "embed_tokens"): each for name, each in tensors.items()}
    save_file(renamed, folder / adapter.WEIGHTS)


def _no_json(folder: Path) -> None:
    (folder / adapter.CONFIG).write_text("{")


def _a_list(folder: Path) -> None:
    (folder / adapter.CONFIG).write_text("[]")


DAMAGES = [_gone, _truncated, _of_other_shapes, _of_other_layers, _of_embeddings, _no_json, _a_list]


@pytest.mark.promise(15)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_what_is_damaged_is_refused_in_a_line(damage: Any, saved: Path) -> None:
    damage(saved / "adapter")
    with pytest.raises(IntegrityError, match="artifact: no readable adapter"):
        artifact.load(saved)


@pytest.mark.parametrize("export", [to_gptq, to_compressed_tensors])
def test_formats_without_adapters_refuse_it(export: Any, tmp_path: Path) -> None:
    artifact.save(adapted(rounded(tiny_subject("llama"))), tmp_path / "artifact")
    with pytest.raises(Unsupported, match="a LoraLinear holds no packed codes"):
        export(tmp_path / "artifact", tmp_path / "export")


def test_without_one_nothing_is_said_of_adapters(tmp_path: Path) -> None:
    """So that such artifacts are, byte for byte, those of before there were any."""
    artifact.save(tiny_subject("llama"), tmp_path)
    assert "adapter" not in artifact.describe(tmp_path)
    assert not (tmp_path / "adapter").exists()
