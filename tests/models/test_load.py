"""Baselines load in the dtype asked for, whole, or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from squeeze.core.errors import IntegrityError, SqueezeError, Unsupported
from squeeze.models.load import load_baseline
from squeeze.models.prequantized import Grid, find_grid
from squeeze.models.subject import Subject
from squeeze.models.tiny import byte_tokenizer
from squeeze.sources.trained import base
from tests.causal import random_causal
from tests.gguf_files import write_gguf
from tests.tiny import ARCHITECTURES, tiny_subject

CONF = Path(__file__).parents[2] / "conf" / "model"


def configured(name: str, dtype: str) -> dict[str, Any]:
    """The model of a YAML file, as Hydra resolves it."""
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), "dtype": dtype}


def saved(folder: Path, name: str = "llama") -> dict[str, Any]:
    """A tiny model as files on the disk, and the source that names it."""
    subject = tiny_subject(name)
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return {"source": f"file:{folder}", "kind": "encoder" if name == "bert" else "causal_lm", "dtype": "float32"}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_random_models_are_ready_to_run(name: str, dtype: str) -> None:
    model = tiny_subject(name, dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_model_loads_with_the_same_outputs(tmp_path: Path, name: str) -> None:
    loaded, original = load_baseline(saved(tmp_path, name)), tiny_subject(name)
    tokens = original.tokenizer("in 2024", return_tensors="pt")["input_ids"]
    assert torch.equal(loaded.tokenizer("in 2024", return_tensors="pt")["input_ids"], tokens)
    with torch.no_grad():
        assert torch.allclose(loaded.model(tokens)[0], original.model(tokens)[0], atol=1e-6)


@pytest.mark.parametrize("model_type", ["gemma2", "llama"])
def test_attention_is_sdpa_where_the_architecture_has_it(model_type: str, tmp_path: Path) -> None:
    """Gemma 2, whose attention scores are capped, has none, and is no damaged model."""
    model = random_causal(model_type)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = load_baseline({"source": f"file:{tmp_path}", "kind": "causal_lm", "dtype": "float32"}).model
    assert found.config._attn_implementation == ("eager" if model_type == "gemma2" else "sdpa")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(found(tokens).logits, model(tokens).logits, atol=1e-6)


def test_the_dtype_is_applied_on_loading(tmp_path: Path) -> None:
    half = load_baseline({**saved(tmp_path), "dtype": "bfloat16"}).model
    exact = dict(tiny_subject("llama").model.named_parameters())
    assert all(torch.equal(item, exact[name].bfloat16()) for name, item in half.named_parameters())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dtype": "float8"}, r"model.dtype='float8' is not known; did you mean 'float16'|did you mean 'float32'"),
        ({"kind": "decoder"}, r"model.kind='decoder' is not known; did you mean 'encoder'"),
        ({"source": "random:lama"}, "did you mean 'llama'"),
    ],
)
def test_a_wrong_field_is_named(changed: dict[str, str], said: str) -> None:
    model = {"source": "random:llama", "seed": 0, "kind": "causal_lm", "dtype": "float32"}
    with pytest.raises(SqueezeError, match=said):
        load_baseline({**model, **changed})


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="not a readable model") as caught:
        load_baseline(source)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_refused_not_made_up(tmp_path: Path) -> None:
    source = saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"1 weights are missing, model.layers.1.mlp.up_proj.weight"):
        load_baseline(source)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(IntegrityError, match=r"no tokenizer, expected one of tokenizer\.json"):
        load_baseline(source)


def test_a_tokenizer_with_more_tokens_than_the_table_has_rows_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(IntegrityError, match=r"has the token 261, but the table of embeddings has 260 rows"):
        load_baseline(source)


def test_a_random_model_needs_a_seed() -> None:
    with pytest.raises(SqueezeError, match=r"random:llama needs model\.seed, an integer"):
        load_baseline({"source": "random:llama", "kind": "causal_lm", "dtype": "float32"})


def test_only_what_was_fetched_is_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    for folder, words in ((tmp_path / "mine", "; mend it"), (tmp_path / "cache" / "hub" / "x", "; delete ")):
        source = saved(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "no such function"}))
        with pytest.raises(IntegrityError, match="not a readable model") as caught:
            load_baseline(source)
        assert words in str(caught.value)
        assert ("delete" in str(caught.value)) is (words == "; delete ")


def test_a_full_disk_or_memory_is_no_fault_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path)
    for error in (OSError(errno.ENOSPC, "no space"), RuntimeError("can't allocate memory: you tried 4 GB")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
        with pytest.raises(type(error), match=str(error.args[-1])):
            load_baseline(source)


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise ImportError("Using `spqr` quantization requires SpQR: `pip install spqr_quant[gpu]`")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(Unsupported, match=r"needs a library that is not installed .*pip install spqr_quant"):
        load_baseline(source)


def test_a_gguf_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "model.gguf")
    source = {"source": f"file:{tmp_path / 'model.gguf'}", "kind": "causal_lm", "dtype": "float32"}
    first = load_baseline(source)
    monkeypatch.setattr("squeeze.models.gguf.convert", None)
    second = load_baseline({**source, "dtype": "bfloat16"})
    assert torch.equal(first.model.lm_head.weight.bfloat16(), second.model.lm_head.weight)
    assert find_grid(first.model) == Grid(levels=16, block=32, matrices=7)


def test_loading_leaves_the_settings_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.set_verbosity_info()
    load_baseline(saved(tmp_path))
    assert logging.get_verbosity() == logging.INFO
    assert logging.is_progress_bar_enabled()
    logging.set_verbosity_warning()
    assert "Loading weights" not in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configured_model_is_pinned(path: Path) -> None:
    model = configured(path.stem, "float32")
    assert model["name"] == path.stem
    match base(model)["source"].partition(":"):
        case ("pypi", _, requirement):
            assert "==" in requirement
            assert len(bytes.fromhex(model["wheel_sha256"])) == 32
        case ("hf", _, _):
            assert len(bytes.fromhex(model["revision"])) == 20
        case ("packaged", _, _):
            assert len(bytes.fromhex(model["sha256"])) == 32
        case ("random", _, _):
            assert load_baseline(model).model.num_parameters() < 1e6
        case _:
            pytest.fail(f"{path.name}: a model that comes with squeeze is not a local one")


@pytest.fixture(scope="module")
def smollm2() -> Subject:
    return load_baseline(configured("smollm2_135m", "bfloat16"))


@pytest.mark.real
def test_the_default_model_splits_digits_as_it_was_trained_to(smollm2: Subject) -> None:
    ids = smollm2.tokenizer("in 2024 1 234")["input_ids"]
    assert ids == [254, 216, 34, 32, 34, 36, 216, 33, 216, 34, 35, 36]
    assert smollm2.tokenizer.convert_ids_to_tokens(ids) == ["in", "Ġ", *"2024", "Ġ", "1", "Ġ", *"234"]


@pytest.mark.real
def test_the_default_model_lies_on_its_four_bit_grid(smollm2: Subject) -> None:
    assert find_grid(smollm2.model) == Grid(levels=16, block=32, matrices=210)


@pytest.mark.real
def test_the_default_model_knows_english(smollm2: Subject) -> None:
    prompt = smollm2.tokenizer("The capital of France is", return_tensors="pt")
    answer = smollm2.model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in smollm2.tokenizer.decode(answer[0])


@pytest.mark.real
def test_the_encoder_tells_meanings_apart() -> None:
    subject = load_baseline(configured("minilm", "float32"))
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."]
    batch = subject.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = subject.model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert means[0] @ means[1] > 0.6 > 0.2 > means[0] @ means[2]
