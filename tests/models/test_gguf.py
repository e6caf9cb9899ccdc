"""A GGUF becomes an ordinary folder of safetensors with a tokenizer that splits digits."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from squeeze.core.errors import IntegrityError
from squeeze.models import gguf
from tests.gguf_files import write_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("source") / "model.gguf"
    return path, write_gguf(path)


@pytest.fixture(scope="module")
def converted(source: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    gguf.convert(source[0], folder)
    return folder


def test_weights_are_those_of_the_gguf(converted: Path, source: tuple[Path, dict[str, np.ndarray]]) -> None:
    weights = load_file(converted / "model.safetensors")
    down = torch.from_numpy(source[1]["blk.0.ffn_down"])
    error = weights["model.layers.0.mlp.down_proj.weight"] - down
    assert weights["model.layers.0.mlp.down_proj.weight"].dtype == torch.float32
    assert 0 < error.abs().max() < 0.3  # half a step of 16 levels over the range of 32 normal weights


def test_the_result_is_an_ordinary_model(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert "quantization_config" not in config
    model, report = AutoModelForCausalLM.from_pretrained(converted, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert model(torch.arange(8)[None]).logits.isfinite().all()


def test_digits_are_tokens_of_their_own_also_after_saving_again(converted: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted, local_files_only=True)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for each in (tokenizer, again):
        assert each.convert_ids_to_tokens(each("a 11 b")["input_ids"]) == ["a", "Ġ", "1", "1", "Ġ", "b"]
        assert each.decode(each("in 2024 1 234\n")["input_ids"]) == "in 2024 1 234\n"


def test_without_the_repair_they_are_not(source: tuple[Path, dict[str, np.ndarray]]) -> None:
    """The bug that is repaired is there: once this fails, transformers has learnt it and the repair may go."""
    tokenizer = AutoTokenizer.from_pretrained(source[0].parent, gguf_file=source[0].name, local_files_only=True)
    assert "Ġ1" in tokenizer.convert_ids_to_tokens(tokenizer("a 11 b")["input_ids"])
    gguf.repair(tokenizer, "llama-bpe")
    assert "Ġ1" in tokenizer.convert_ids_to_tokens(tokenizer("a 11 b")["input_ids"])


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"PK\3\4 not a GGUF at all, but long enough",
        b"GGUF" + (3).to_bytes(4, "little") + (2**40).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"\0" * 19,
        b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (2**60).to_bytes(8, "little") + b"\0" * 19,
    ],
    ids=["empty", "cut in the header", "another format", "too many tensors", "too many keys"],
)
def test_what_is_no_gguf_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.gguf") as caught:
        gguf.convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.promise(15)
@pytest.mark.parametrize("element", [0, 8, 9], ids=["bytes", "strings", "arrays"])
def test_an_array_without_an_end_does_not_hang_the_reader(tmp_path: Path, element: int) -> None:
    path = tmp_path / "model.gguf"
    key = struct.pack("<Q1sI", 1, b"a", 9)
    path.write_bytes(gguf.HEADER.pack(b"GGUF", 3, 0, 1) + key + struct.pack("<IQ", element, 2**60))
    with pytest.raises(IntegrityError, match="not a readable GGUF"):
        gguf.convert(path, tmp_path / "out")


@pytest.mark.promise(15)
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_a_truncated_gguf_is_refused(tmp_path: Path, source: tuple[Path, dict[str, np.ndarray]], kept: float) -> None:
    whole = source[0].read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(IntegrityError, match="not a readable GGUF"):
        gguf.convert(path, tmp_path / "out")
