"""Tiny models are random all through, the same for the same seed, and speak in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from squeeze.core.errors import SqueezeError
from squeeze.models.architecture import text_config
from squeeze.models.tiny import PICTURE, SHAPES, VOCABULARY, byte_tokenizer, random_model
from tests.tiny import KINDS

TEXT = "naïve 東京 in 2024\n\n  yes"


def build(architecture: str, seed: int = 0) -> torch.nn.Module:
    return random_model(architecture, seed, KINDS.get(architecture, "causal_lm"))


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_seed_alone_decides(architecture: str) -> None:
    torch.manual_seed(1)
    first = build(architecture).state_dict()
    torch.manual_seed(2)
    second, other = build(architecture).state_dict(), build(architecture, seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in dict(build(architecture).named_parameters()))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build("gpt2")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("architecture", SHAPES)
def test_no_parameter_is_constant(architecture: str) -> None:
    model = build(architecture)
    assert all(parameter.std() > 0.01 for parameter in model.parameters())
    pictures = 1 if architecture == "llava" else 0  # the token that stands for a piece of one
    assert text_config(model).vocab_size == VOCABULARY + pictures


def test_an_unknown_architecture_says_which_was_meant() -> None:
    with pytest.raises(SqueezeError, match="did you mean 'llama'"):
        build("lama")


def test_text_survives_the_tokenizer() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) == len(TEXT.encode())
    assert tokenizer.decode(ids) == TEXT
    assert len(tokenizer) == VOCABULARY


def test_a_tokenizer_of_pictures_has_the_token_that_the_model_looks_for(tmp_path: Path) -> None:
    byte_tokenizer(pictures=True).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    model = build("llava")
    assert loaded.convert_tokens_to_ids(PICTURE) == model.config.image_token_id == VOCABULARY
    assert len(loaded) == len(model.get_input_embeddings().weight) == VOCABULARY + 1
    assert loaded(PICTURE)["input_ids"] == [VOCABULARY]
    assert loaded(TEXT)["input_ids"] == byte_tokenizer()(TEXT)["input_ids"]


@pytest.mark.parametrize("encloses", [False, True])
def test_the_tokenizer_is_saved_and_loaded(tmp_path: Path, encloses: bool) -> None:
    tokenizer = byte_tokenizer(encloses=encloses)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert (loaded.eos_token_id, loaded.pad_token_id) == (256, 257)
    assert (tokenizer("a")["input_ids"][0] == tokenizer.cls_token_id) is encloses
