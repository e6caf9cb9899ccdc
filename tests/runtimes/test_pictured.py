"""Pictures in front of prompts: one that is always the same, read before each, as transformers reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.models.tiny import VOCABULARY
from squeeze.runtimes.compiled import Compiled
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.pictured import picture, pictured, prefix, visual_tokens
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.fastv import FastV
from tests.tiny import tiny_model, tiny_subject

PROMPT = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
DECODED = 8
BEGIN = 256  # the token that begins a text


def plain() -> Subject:
    return tiny_subject("llava")


def pruned() -> Subject:
    return FastV(0.25).apply(tiny_subject("llava"), CalibrationText.empty())


def read(model: Any) -> dict[str, torch.Tensor]:
    """What transformers is given for the same prompts."""
    before = torch.tensor([BEGIN, *[VOCABULARY] * 36]).expand(2, -1)
    return {"input_ids": torch.cat([before, PROMPT], dim=1), "pixel_values": picture(model).expand(2, -1, -1, -1)}


def test_the_prompt_stands_behind_the_picture() -> None:
    model = tiny_model("llava")
    assert visual_tokens(model) == 36
    assert prefix(model) == [BEGIN, *[VOCABULARY] * 36]
    model.config.text_config.bos_token_id = None
    assert prefix(model) == [VOCABULARY] * 36


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_picture_is_always_the_same_and_no_two_patches_of_it_are(dtype: str) -> None:
    found = picture(tiny_model("llava", dtype))
    assert torch.equal(found, picture(tiny_model("llava", dtype, seed=1)))
    assert (found.shape, found.dtype) == ((1, 3, 48, 48), getattr(torch, dtype))
    assert found.abs().max() <= 1
    patches = found[0].unfold(1, 8, 8).unfold(2, 8, 8).transpose(0, 2).reshape(36, -1).float()
    apart = torch.cdist(patches, patches) + torch.eye(36) * 99
    assert apart.min() > 0.5


@pytest.mark.parametrize("make", [plain, pruned])
def test_it_generates_what_transformers_does(make: Any) -> None:
    subject = make()
    generation = Eager("cpu", 1).engine(subject).begin(PROMPT.shape[1] + DECODED)
    generation.prefill(PROMPT)
    for _ in range(DECODED - 1):
        generation.decode()
    model: Any = subject.model
    greedy = GenerationConfig(do_sample=False, max_new_tokens=DECODED, pad_token_id=0)
    expected = model.generate(**read(model), generation_config=greedy)[:, -DECODED:]
    assert generation.token_ids() == expected.tolist()
    assert len(expected.unique()) > 2, "a model that repeats one token would show nothing"


@torch.inference_mode()
def test_what_is_seen_changes_what_is_said() -> None:
    model: Any = tiny_model("llava")
    found = pictured(model)(PROMPT).logits[:, -1]
    blind = model(**{**read(model), "pixel_values": torch.zeros(2, 3, 48, 48)}).logits[:, -1]
    assert torch.equal(found, model(**read(model)).logits[:, -1])
    assert (found - blind).abs().max() > 1e-2 * found.abs().max()


def test_bytes_of_the_cache_are_those_of_the_tokens_that_each_block_holds() -> None:
    """Of a picture of 36 tokens a quarter stays in two of four blocks: 2 heads of 16 channels, keys and values."""
    found = []
    for subject in (plain(), pruned()):
        generation = Eager("cpu", 1).engine(subject).begin(20)
        generation.prefill(PROMPT)
        found.append(generation.bytes_per_token)
    tokens, of_a_token = 1 + 36 + 9, 2 * 2 * 16 * 4
    assert found == [4 * of_a_token, (2 * tokens + 2 * (tokens - 27)) * of_a_token / tokens]


def test_the_pictures_tokens_count_as_positions() -> None:
    engine = Eager("cpu", 1).engine(plain())
    engine.begin(2048 - 37)
    with pytest.raises(Unsupported, match=r"2048 positions.*need 2049"):
        engine.begin(2048 - 36)


def test_a_runtime_of_fixed_shapes_refuses_pictures() -> None:
    with pytest.raises(Unsupported, match="reads pictures runs with runtime=eager alone"):
        Compiled("cpu", 1).engine(plain())
