"""Artifacts: what is saved is what is loaded; a folder that is not what it claims is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError
from squeeze.layers import quantized, sparse
from squeeze.layers.contract import count_parameters, layer_class
from squeeze.layers.kv_cache import QuantizedCache
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.models.tiny import byte_tokenizer
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.causal import random_causal
from tests.tiny import ARCHITECTURES, tiny_subject

TOKEN_IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    artifact.save(tiny_subject("llama").claiming(bits=4, parameters=123), tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loaded_model_computes_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    subject = tiny_subject(name, dtype)
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path)
    assert torch.equal(subject.model(TOKEN_IDS)[0], loaded.model(TOKEN_IDS)[0])
    assert str(loaded.model.dtype) == f"torch.{dtype}"
    assert not loaded.model.training


def test_a_model_without_sdpa_is_compressed_saved_and_loaded(tmp_path: Path) -> None:
    subject = Subject(random_causal("gemma2"), byte_tokenizer())
    compressed = RoundToNearest(4, 32, symmetric=True).apply(subject, CalibrationText.empty())
    artifact.save(compressed, tmp_path)
    loaded = artifact.load(tmp_path)
    assert loaded.model.config._attn_implementation == "eager"
    assert torch.equal(compressed.model(TOKEN_IDS).logits, loaded.model(TOKEN_IDS).logits)


def test_a_skeleton_is_the_model_without_its_data(saved: Path) -> None:
    skeleton = artifact.skeleton(saved)
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert dict(skeleton.named_parameters()).keys() == dict(tiny_subject("llama").model.named_parameters()).keys()


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    subject = tiny_subject("gpt2")
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path).model
    assert artifact.describe(tmp_path)["tied"]
    assert architecture.head(loaded).weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    stored = (tmp_path / artifact.WEIGHTS).stat().st_size
    assert stored < 4 * count_parameters(subject.model) * 1.05 + 20_000


def test_claims_and_parameter_count_survive(saved: Path) -> None:
    claims = artifact.load(saved).claims
    assert claims["bits"] == 4
    assert claims["parameters"] == 123


def test_hash_covers_content_and_not_timings(saved: Path) -> None:
    before = artifact.content_hash(saved)
    (saved / "build.json").write_text('{"seconds": 1}')
    assert artifact.content_hash(saved) == before
    config = saved / "config.json"
    config.write_text(config.read_text() + " ")
    assert artifact.content_hash(saved) != before


def test_equal_subjects_give_equal_hashes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        artifact.save(tiny_subject("llama"), tmp_path / name)
    artifact.save(tiny_subject("llama", seed=1), tmp_path / "c")
    hashes = [artifact.content_hash(tmp_path / name) for name in ("a", "b", "c")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_truncated_weight_file_is_refused(saved: Path) -> None:
    weights = saved / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="build again"):
        artifact.load(saved)


def test_a_missing_tensor_is_refused(saved: Path, tmp_path: Path) -> None:
    artifact.save(tiny_subject("opt"), tmp_path / "other")
    (tmp_path / "other" / artifact.WEIGHTS).replace(saved / artifact.WEIGHTS)
    with pytest.raises(IntegrityError):
        artifact.load(saved)


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "squeeze/layers has no os.py"),
        ("torch.nn.Linear", "is refused"),
        ("packing.torch.nn.Linear", "is refused"),
        ("squeeze.layers.quantized.QuantizedLinear", "is refused"),
        ("rtn.RoundToNearest", "squeeze/layers has no rtn.py"),
        ("../layers/quantized.QuantizedLinear", "is refused"),
        ("absent:quantized.QuantizedLinear", "no plugin 'absent' is installed"),
        ("quantized.nn", "defines no class 'nn'"),
        ("quantized.Grid", "defines no class 'Grid'"),
        ("contract.CompressedLayer", "does not keep the contract"),
        ("master_weights.Held", "does not keep the contract"),
        ("affine.AffineGrid", "does not keep the contract"),
    ],
)
def test_only_layers_that_keep_the_contract_are_made(saved: Path, target: str, reason: str) -> None:
    _edit(saved, layers={"model.layers.0.mlp.up_proj": {"_target_": target}})
    with pytest.raises(IntegrityError, match=re.escape(reason)):
        artifact.load(saved)


@pytest.mark.promise(15)
def test_a_layer_is_made_only_by_the_file_that_defines_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "QuantizedLinear", quantized.QuantizedLinear, raising=False)
    assert layer_class("quantized.QuantizedLinear") is quantized.QuantizedLinear
    with pytest.raises(IntegrityError, match="defines no class"):
        layer_class("sparse.QuantizedLinear")


def test_an_artifact_of_the_format_of_before_is_refused(saved: Path) -> None:
    _edit(saved, format=1)
    with pytest.raises(IntegrityError, match="artifact format 1, expected 2"):
        artifact.load(saved)


@pytest.mark.promise(15)
def test_only_transformers_models_are_made(saved: Path) -> None:
    _edit(saved, architecture="AutoConfig")
    with pytest.raises(IntegrityError, match="architecture"):
        artifact.load(saved)


def test_a_cache_of_its_own_travels_with_the_artifact(tmp_path: Path) -> None:
    cache = QuantizedCache(4, 8, residual=16)
    artifact.save(replace(tiny_subject("llama"), cache=cache), tmp_path)
    assert artifact.load(tmp_path).cache == cache
    assert artifact.describe(tmp_path)["cache"] == {
        "_target_": "kv_cache.QuantizedCache",
        "bits": 4,
        "group_size": 8,
        "residual": 16,
    }


def test_without_one_nothing_is_said_of_caches(saved: Path) -> None:
    """So that such artifacts are, byte for byte, those of before there were any."""
    assert "cache" not in artifact.describe(saved)
    assert artifact.load(saved).cache is None


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    "target",
    ["os.system", "kv_cache.Codes", "packing.pack", "squeeze.layers.kv_cache.QuantizedCache", "kv_cache.Cache"],
)
def test_only_our_own_caches_are_made(saved: Path, target: str) -> None:
    _edit(saved, cache={"_target_": target})
    with pytest.raises(IntegrityError, match=r"artifact\.json names"):
        artifact.load(saved)


def test_a_folder_without_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"artifact\.json"):
        artifact.load(tmp_path)


def _edit(folder: Path, **changes: object) -> None:
    path = folder / artifact.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
