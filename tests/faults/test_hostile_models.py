"""Hostile models, given to the command line: each is answered in one line, soon, in little memory.

A case is its name, what spoils a sound model's folder, and words that the one line must have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from squeeze import cli
from tests.faults.answers import answer, aside, link_to, sparse  # noqa: F401 - a fixture
from tests.tiny import tiny_subject


def configured(**changes: object) -> Callable[[Path], object]:
    """A model whose config.json says something else."""

    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def without(pattern: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)


def lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def header(content: bytes, length: int | None = None) -> Callable[[Path], object]:
    return written("model.safetensors", struct.pack("<Q", len(content) if length is None else length) + content)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no heads": (configured(num_attention_heads=0), r"says num_attention_heads 0, expected an integer from 1"),
    "heads in words": (configured(num_attention_heads="four"), r"says num_attention_heads 'four', expected an integer"),
    "endless layers": (
        configured(num_hidden_layers=10**12),
        r"says num_hidden_layers 10+, expected an integer from 1 to",
    ),
    "a larger vocabulary": (
        configured(vocab_size=300),
        r"says vocab_size 300, but the table model\.embed_tokens\.weight has 260 rows",
    ),
    "a pad token outside": (configured(pad_token_id=260), r"says pad_token_id 260, expected null or .* below 260"),
    "a missing library": (
        configured(quantization_config={"quant_method": "aqlm"}),
        r"quantized \(aqlm\), aqlm is not installed; run `pip install aqlm`, or give the model as it was",
    ),
    "quantized by nothing": (configured(quantization_config=3), r"says quantization_config 3, expected an object"),
    "a list for a configuration": (written("config.json", b"[1]"), r"config\.json: holds list, expected an object"),
    "no configuration": (
        without("config.json"),
        r"config\.json cannot be read \(No such file or directory\), expected a file",
    ),
    "a configuration cut off": (written("config.json", b'{"a": '), r"config\.json: not readable as JSON"),
    "a deep configuration": (written("config.json", b"[" * 10**6), r"config\.json: not readable as JSON"),
    "a configuration of 60 MB": (
        replaced("config.json", sparse),
        r"config\.json has 60,000,000 bytes, expected at most",
    ),
    "a configuration that waits": (
        replaced("config.json", os.mkfifo),
        r"config\.json is a FIFO, expected a regular file",
    ),
    "an endless configuration": (replaced("config.json", link_to("/dev/zero")), r"config\.json is a device"),
    "no tokenizer": (without("tokenizer*"), r"no tokenizer, expected one of tokenizer\.json.*save_pretrained"),
    "no weights": (without("*.safetensors"), r"no model\.safetensors, expected all weights as safetensors"),
    "weights that wait": (replaced("model.safetensors", os.mkfifo), r"no model\.safetensors, expected all weights"),
    "a lost shard": (lost_shard, r"index\.json names model-00002-of-00002\.safetensors, which is not there"),
    "an index of numbers": (
        written("model.safetensors.index.json", b'{"weight_map": {"a": 1}}'),
        r"is no index of weights",
    ),
    "weights cut off": (cut, r"model\.safetensors is cut off: [\d,]+ bytes, its header promises [\d,]+"),
    "a header of 8 TiB": (header(b"{}", 2**43), r"would have 8,796,093,022,208 of its 10 bytes, expected at most"),
    "a header that is none": (header(b"[1, 2]"), r"the header of model\.safetensors is damaged"),
    "offsets in words": (
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", "y"]}}'),
        r"the header of model\.safetensors is damaged",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model as transformers saves it."""
    folder = tmp_path_factory.mktemp("model")
    subject = tiny_subject("llama")
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder


def run_of(model: Path, folder: Path) -> list[str]:
    request = ["model=tiny_llama", f"model.source=file:{model}", "technique=none", "protocol=smoke"]
    return ["run", *request, "--results", str(folder / "results")]


@pytest.mark.promise(15)
@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_is_answered_in_one_line(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = MODELS[name]
    folder = tmp_path / "mine"
    shutil.copytree(model, folder)
    spoil(folder)
    said = answer(capsys, *run_of(folder, tmp_path))
    assert re.search(words, said), said
    assert "delete" not in said, "it is the user's own"


@pytest.mark.promise(15)
def test_a_sound_model_passes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(run_of(model, tmp_path)) == cli.USAGE
    assert capsys.readouterr().err.endswith("error: nothing refused it\n")
