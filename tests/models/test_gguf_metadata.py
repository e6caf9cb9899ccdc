"""What a GGUF says of a model: read by transformers, the same sizes; and of its tokenizer, the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from squeeze.core.errors import Unsupported
from squeeze.core.paths import PACKAGE
from squeeze.models import gguf_file
from squeeze.models.gguf import PRE_TOKENIZERS, repair
from squeeze.models.gguf_metadata import NO_MERGE, split_name
from squeeze.models.load import load_folder
from squeeze.models.subject import Subject
from tests.gguf_files import entry
from tests.tiny import tiny_subject

TEXT = "In 2024, 11 of 345 were\n\nthere:  twice  as many, weren't they?\tÄ — 7."


def written(subject: Subject, folder: Path) -> Path:
    path = folder / "model.gguf"
    gguf_file.write(subject, gguf_file.tensors(subject.model), path)
    return path


@pytest.fixture
def trained() -> Subject:
    """The toy that comes with squeeze: its tokenizer merges."""
    return load_folder(PACKAGE / "sources" / "packaged" / "tiny")


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("split", ["gpt-2", "smollm"])
def test_another_reader_gives_the_same_ids(split: str, trained: Subject, tmp_path: Path) -> None:
    if split == "smollm":
        repair(trained.tokenizer, "smollm")
    path = written(trained, tmp_path)
    assert entry(path, "tokenizer.ggml.pre") == split
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    repair(theirs, split)  # which transformers loses
    assert theirs(TEXT)["input_ids"] == trained.tokenizer(TEXT)["input_ids"]
    kinds = entry(path, "tokenizer.ggml.token_type")
    assert (kinds[:2], {*kinds[2:]}) == ([3, 3], {1})  # the two special ones first
    assert entry(path, "tokenizer.ggml.eos_token_id") == trained.tokenizer.eos_token_id
    assert entry(path, "tokenizer.ggml.add_bos_token") is False


@pytest.mark.filterwarnings("ignore")
def test_another_reader_gives_the_same_sizes(trained: Subject, tmp_path: Path) -> None:
    path = written(trained, tmp_path)
    theirs, ours = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name), trained.model.config
    for name in (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
    ):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.rms_norm_eps == pytest.approx(ours.rms_norm_eps)
    assert theirs.rope_parameters["rope_theta"] == ours.rope_parameters["rope_theta"]


def test_a_tokenizer_without_merges_has_one_that_never_applies(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    path = written(subject, tmp_path)
    assert entry(path, "tokenizer.ggml.merges") == [NO_MERGE]
    assert not {*NO_MERGE.split()} & subject.tokenizer.get_vocab().keys()


def test_rows_of_the_table_without_a_token_are_marked_as_unused(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    subject.model.resize_token_embeddings(264, mean_resizing=False)
    path = written(subject, tmp_path)
    assert entry(path, "tokenizer.ggml.tokens")[260:] == [f"[PAD{number}]" for number in range(260, 264)]
    assert entry(path, "tokenizer.ggml.token_type")[260:] == [5] * 4
    assert entry(path, "llama.vocab_size") == 264


def test_of_a_gpt_neox_it_says_what_is_turned_and_what_is_added_side_by_side(tmp_path: Path) -> None:
    path = written(tiny_subject("gpt_neox"), tmp_path)
    assert entry(path, "general.architecture") == "gptneox"
    assert entry(path, "gptneox.rope.dimension_count") == 4  # a quarter of 16
    assert entry(path, "gptneox.use_parallel_residual") is True


def backend(**parts: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(parts.pop("model", models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")])))
    tokenizer.pre_tokenizer = parts.pop("pre", pre_tokenizers.ByteLevel(add_prefix_space=False))
    if parts:
        tokenizer.normalizer = parts["normalizer"]
    return json.loads(PreTrainedTokenizerFast(tokenizer_object=tokenizer).backend_tokenizer.to_str())


def test_a_split_has_its_name() -> None:
    assert split_name(backend()) == "gpt-2"
    assert split_name(backend(pre=PRE_TOKENIZERS["smollm"]())) == "smollm"
    assert split_name(backend(normalizer=normalizers.NFC())) == "gpt-2"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pre": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "split by ByteLevel has no name"),
        (  # nothing is merged, but the text is another
            {"pre": pre_tokenizers.ByteLevel(), "model": models.BPE(vocab={"a": 0}, merges=[])},
            "split by ByteLevel has no name",
        ),
        ({"pre": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)}, "split by ByteLevel"),
        ({"pre": pre_tokenizers.Metaspace()}, "split by Metaspace has no name"),
        ({"pre": pre_tokenizers.Sequence([pre_tokenizers.Digits(False)])}, "split by Digits"),
        ({"normalizer": normalizers.Lowercase()}, "changes text first"),
        ({"model": models.WordPiece({"[UNK]": 0})}, r"of this kind|of the kind"),
    ],
)
def test_a_split_without_a_name_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        split_name(backend(**parts))


def test_what_llama_cpp_computes_otherwise_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for change, message in (
        ({"hidden_act": "gelu"}, "llama.cpp computes silu in llama models, and this one gelu"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3"}}, "of the type 'llama3'"),
    ):
        subject = tiny_subject("llama")
        for name, value in change.items():
            setattr(subject.model.config, name, value)
        with pytest.raises(Unsupported, match=message):
            written(subject, tmp_path)
    assert list(tmp_path.iterdir()) == []
