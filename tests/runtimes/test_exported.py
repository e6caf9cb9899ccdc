"""Engines of exported folders: greedy generation by a function that reads, text scored group by group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.runtimes import exported
from squeeze.runtimes.exported import Exported, Generation, Read, chosen
from tests.tiny import tiny_subject

TOKEN_IDS = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))


def reader(subject: Subject, read: list[int] | None = None) -> Read:
    """What an engine gives, of torch's model. read: the lengths of what was read are noted there."""
    cache = DynamicCache(config=subject.model.config)

    @torch.inference_mode()
    def reads(token_ids: Tensor, places: Tensor) -> Tensor:
        if read is not None:
            read.append(token_ids.shape[1])
        found: Tensor = subject.model(token_ids, past_key_values=cache, logits_to_keep=places).logits
        return found

    return reads


def test_it_generates_what_transformers_does() -> None:
    subject, lengths = tiny_subject("llama"), list[int]()
    generation = Generation(reader(subject, lengths), 1.0)
    with pytest.raises(IndexError):
        generation.decode()
    first = generation.prefill(TOKEN_IDS)
    later = [generation.decode() for _ in range(5)]
    assert all(token.shape == (2, 1) for token in (first, *later))
    greedy = GenerationConfig(do_sample=False, max_new_tokens=6, pad_token_id=0)
    expected = subject.model.generate(TOKEN_IDS, generation_config=greedy)[:, 20:]
    assert generation.token_ids() == expected.tolist()
    assert lengths == [20, 1, 1, 1, 1, 1]


@torch.inference_mode()
def test_a_long_text_is_scored_in_groups_each_behind_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "GROUP", 8)
    subject, lengths = tiny_subject("llama"), list[int]()
    found = exported.logits(reader(subject, lengths), TOKEN_IDS)
    torch.testing.assert_close(found, subject.model(TOKEN_IDS).logits, rtol=1e-4, atol=1e-5)
    assert lengths == [8, 8, 4]
    lengths.clear()
    likely = exported.log_probabilities(reader(subject, lengths), TOKEN_IDS)
    expected = found[:, :-1].log_softmax(-1).gather(-1, TOKEN_IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(likely, expected, rtol=1e-4, atol=1e-5)
    assert lengths == [8, 8, 3], "nothing follows the last token, so that it is not read"


def test_a_folder_says_its_positions_and_has_its_tokenizer(tmp_path: Path) -> None:
    artifact.save(tiny_subject("llama"), tmp_path)
    found = Exported.of(tmp_path)
    found.check_length(2048)
    with pytest.raises(Unsupported, match=r"2048 positions.*need 2049"):
        found.check_length(2049)
    assert found.tokenizer("a")["input_ids"] == tiny_subject("llama").tokenizer("a")["input_ids"]


def test_a_field_of_another_value_is_refused_with_those_that_there_are() -> None:
    assert chosen("some", "weights", "b", {"a": 1, "b": 2}) == 2
    with pytest.raises(Unsupported, match="runtime=some has no weights 'c'; expected one of a, b"):
        chosen("some", "weights", "c", {"a": 1, "b": 2})
    exported.check_cpu("some", "cpu")
    with pytest.raises(Unsupported, match="asked for cuda:0; use device=cpu"):
        exported.check_cpu("some", "cuda:0")
