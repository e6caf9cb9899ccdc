"""Students of random weights: the sizes asked for, the seed alone, the teacher's vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models.layout import SHARES, Sizes, sizes
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.from_scratch import FromScratch
from squeeze.techniques.training.narrow import Narrow
from tests.causal import random_causal
from tests.students import loads_alone, outputs, subject_of
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

SMALL = FromScratch(layers=1, hidden=32, channels=48, heads=2)
NO_TOKENS = torch.empty((0, 0), dtype=torch.int64)
TEXT = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))


def student(name: str, technique: FromScratch = SMALL, dtype: str = "float32", seed: int = 0) -> Subject:
    return technique.apply(tiny_subject(name, dtype), CalibrationText(NO_TOKENS, seed))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_has_the_sizes_asked_for_and_loads_without_squeeze(name: str, tmp_path: Path) -> None:
    made = student(name)
    left = {"layers_kept": 0.5, "hidden_kept": 0.5, "channels_kept": 0.375, "heads_kept": 0.5}
    assert made.claims == {"parameters": count_parameters(tiny_model(name)), **left}
    assert not any(parameter.requires_grad for parameter in made.model.parameters())
    assert not made.model.training
    model = loads_alone(made, tmp_path, name)
    assert sizes(model) == Sizes(layers=1, hidden=32, channels=48, attention=32)
    assert model.config.vocab_size == tiny_model(name).config.vocab_size


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_not_said_is_the_teachers(name: str) -> None:
    teacher, subject = tiny_model(name), student(name, FromScratch())
    made = subject.model
    assert subject.claims.keys() == {"parameters"}
    assert made.config.to_dict() == teacher.config.to_dict()
    shapes = {key: tensor.shape for key, tensor in teacher.state_dict().items()}
    assert {key: tensor.shape for key, tensor in made.state_dict().items()} == shapes
    assert not torch.allclose(outputs(made), outputs(teacher), atol=0.1)


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    first = student("llama").model.state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second, other = student("llama").model.state_dict(), student("llama", seed=1).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_it_begins_as_transformers_begins_it() -> None:
    made = student("gpt2", seed=3).model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = AutoModelForCausalLM.from_config(made.config, dtype=torch.float32)
    assert all(torch.equal(made.state_dict()[name], each) for name, each in expected.state_dict().items())
    assert made.transformer.ln_f.weight.eq(1).all()


def test_another_dtype_is_the_same_draw_rounded() -> None:
    wide, narrow = student("opt").model, student("opt", dtype="bfloat16").model
    assert narrow.dtype == narrow.config.dtype == torch.bfloat16
    for name, tensor in wide.state_dict().items():
        assert torch.equal(narrow.state_dict()[name], tensor.bfloat16())
    assert narrow.lm_head.weight is narrow.model.decoder.embed_tokens.weight


def test_it_claims_shares_of_the_uncompressed_model() -> None:
    halved = Narrow(0.5).apply(LayerDrop(0.5, "every_other").apply(tiny_subject("llama"), TEXT), TEXT)
    claims = FromScratch(hidden=32, channels=16, heads=4).apply(halved, TEXT).claims
    shares = {name: claims[name] for name in ("layers_kept", "channels_kept", "heads_kept", "hidden_kept")}
    assert shares == {"layers_kept": 0.5, "channels_kept": 0.125, "heads_kept": 0.5, "hidden_kept": 0.5}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_teachers_embeddings_may_stay(name: str) -> None:
    teacher, made = tiny_model(name), student(name, FromScratch(layers=1, embeddings=True)).model
    assert torch.equal(made.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    if name != "bert":
        assert torch.equal(made.get_output_embeddings().weight, teacher.get_output_embeddings().weight)
        own, given = (model.get_output_embeddings().weight for model in (made, teacher))
        assert (own is made.get_input_embeddings().weight) is (given is teacher.get_input_embeddings().weight)
        assert own.data_ptr() != given.data_ptr()


def test_heads_of_keys_and_values_can_be_chosen(tmp_path: Path) -> None:
    technique = FromScratch(hidden=96, heads=6, kv_heads=3)
    config = loads_alone(student("llama", technique), tmp_path, "llama").config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (6, 3, 16)


@pytest.mark.parametrize(
    ("name", "technique", "message"),
    [
        ("llama", FromScratch(layers=3), "3 layers, the teacher has 2; expected at most those"),
        ("llama", FromScratch(layers=0), "layers=0, expected 1 or more, or null for the teacher's"),
        ("llama", FromScratch(hidden=50), "hidden=50 is no even multiple of heads=4"),
        ("llama", FromScratch(hidden=12), "hidden=12 is no even multiple of heads=4"),
        ("llama", FromScratch(heads=4, kv_heads=3), "kv_heads=3, expected a divisor of heads=4"),
        ("opt", FromScratch(kv_heads=2), "kv_heads=2, expected null: opt has none"),
        ("gpt2", FromScratch(hidden=32, embeddings=True), "have 64 channels, the student's 32; expected embeddings=f"),
    ],
)
def test_sizes_that_no_model_has_are_refused(name: str, technique: FromScratch, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        student(name, technique)


def test_an_architecture_that_is_not_known_is_refused() -> None:
    subject = Subject(random_causal("gemma2"), tiny_subject("llama").tokenizer)
    with pytest.raises(Unsupported, match="gemma2 models are not known"):
        SMALL.apply(subject, CalibrationText(NO_TOKENS))


def test_other_steps_leave_it_nothing_but_embeddings() -> None:
    rounding = RoundToNearest(8, 32, symmetric=True, embed_bits=8)
    compressed = rounding.apply(subject_of("gpt2"), CalibrationText.empty())
    made = SMALL.apply(compressed, CalibrationText(NO_TOKENS))
    assert made.claims.keys() == {"parameters", *SHARES}
    with pytest.raises(Unsupported, match="embeddings are compressed; put this step first"):
        FromScratch(embeddings=True).apply(compressed, CalibrationText(NO_TOKENS))
