"""An exported folder, read by plain transformers with compressed-tensors, computes what the artifact computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
from squeeze.cli import main
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.hqq import HQQ
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

TOKEN_IDS = torch.arange(24).reshape(2, 12)
NO_DATA = CalibrationText.empty()


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", ["llama", "opt", "gpt_neox"])
@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"),
    [(4, 32, True), (8, None, True), (3, 32, True), (4, 64, False), (3, None, False)],
)
def test_transformers_reads_it(name: str, bits: int, group_size: int | None, symmetric: bool, tmp_path: Path) -> None:
    subject = RoundToNearest(bits, group_size, symmetric).apply(tiny_subject(name), NO_DATA)
    artifact.save(subject, tmp_path / "artifact")
    assert main(["export", str(tmp_path / "artifact"), str(tmp_path / "exported")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    torch.testing.assert_close(theirs(TOKEN_IDS)[0], subject.model(TOKEN_IDS)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(4, 32, True), (3, 32, False), (8, None, False)])
def test_its_tensors_hold_the_weights(bits: int, group_size: int | None, symmetric: bool, tmp_path: Path) -> None:
    subject = RoundToNearest(bits, group_size, symmetric).apply(tiny_subject("llama"), NO_DATA)
    artifact.save(subject, tmp_path / "artifact")
    to_compressed_tensors(tmp_path / "artifact", tmp_path / "exported")
    tensors = load_file(tmp_path / "exported" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    rows, columns = tensors[f"{name}.weight_shape"].tolist()
    codes = torch.tensor([stream(words, bits, columns) for words in tensors[f"{name}.weight_packed"]])
    scales = tensors[f"{name}.weight_scale"]
    zeros = torch.full(scales.shape, 2 ** (bits - 1))
    if not symmetric:
        zeros = torch.tensor([stream(words, bits, rows) for words in tensors[f"{name}.weight_zero_point"].T]).T
    ours = artifact.load(tmp_path / "artifact", prepare=False).model.get_submodule(name).dequantize()
    width = columns // scales.shape[1]
    assert torch.equal((codes - zeros.repeat_interleave(width, 1)) * scales.repeat_interleave(width, 1), ours)
    config = json.loads((tmp_path / "exported" / "config.json").read_text())["quantization_config"]
    assert config.get("dequantize", False) is not symmetric
    assert config["config_groups"]["group_0"]["weights"]["symmetric"] is symmetric
    assert config["ignore"] == ["lm_head"]
    reader = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert reader("a text")["input_ids"] == subject.tokenizer("a text")["input_ids"]


def test_tied_tensors_are_stored_once_by_their_first_name_in_a_file_that_says_what_wrote_it(tmp_path: Path) -> None:
    subject = RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_DATA)
    subject.model.lm_head.weight = subject.model.model.embed_tokens.weight
    subject.model.config.tie_word_embeddings = True
    artifact.save(subject, tmp_path / "artifact")
    to_compressed_tensors(tmp_path / "artifact", tmp_path / "exported")
    weights = tmp_path / "exported" / "model.safetensors"
    assert {name for name in load_file(weights) if "embed" in name or "head" in name} == {"model.embed_tokens.weight"}
    with safe_open(weights, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_symmetric_grids_may_be_of_several_kinds(tmp_path: Path) -> None:
    artifact.save(mixed(symmetric=True), tmp_path / "artifact")
    to_compressed_tensors(tmp_path / "artifact", tmp_path / "exported")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    torch.testing.assert_close(theirs(TOKEN_IDS)[0], mixed(symmetric=True).model(TOKEN_IDS)[0], rtol=1e-4, atol=1e-4)


def mixed(symmetric: bool) -> Subject:
    """All layers in 4 bits but one in 8."""
    subject = RoundToNearest(4, 32, symmetric).apply(tiny_subject("llama"), NO_DATA)
    other = RoundToNearest(8, 32, symmetric).apply(tiny_subject("llama"), NO_DATA)
    name = "model.layers.1.mlp.down_proj"
    architecture.replace(subject.model, name, other.model.get_submodule(name))
    return subject


def stream(words: torch.Tensor, bits: int, count: int) -> list[int]:
    """Codes out of one little-endian stream of bits, which runs on over the ends of words."""
    whole = sum((word % 2**32) << (32 * place) for place, word in enumerate(words.tolist()))
    return [(whole >> (bits * place)) % 2**bits for place in range(count)]


def test_a_folder_that_holds_anything_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bits in (4, 8):
        subject = RoundToNearest(bits, 32, True).apply(tiny_subject("llama"), NO_DATA)
        artifact.save(subject, tmp_path / f"rtn{bits}")
    (tmp_path / "exported").mkdir()
    assert main(["export", str(tmp_path / "rtn4"), str(tmp_path / "exported")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert "MB of compressed-tensors; to load it, pip install 'transformers>=5.0' 'compressed-tensors>=0.19'" in shown
    assert f"AutoModelForCausalLM.from_pretrained('{tmp_path / 'exported'}')" in shown
    before = {path: path.read_bytes() for path in (tmp_path / "exported").iterdir()}
    assert main(["export", str(tmp_path / "rtn8"), str(tmp_path / "exported")]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    with pytest.raises(SqueezeError, match="expected a new or empty folder"):
        to_compressed_tensors(tmp_path / "rtn8", tmp_path / "exported")
    assert {path: path.read_bytes() for path in (tmp_path / "exported").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "rtn4", "rtn8"]


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    cases = {
        "hqq": (HQQ(4, 32).apply(tiny_subject("llama"), NO_DATA), "zero points lie between codes"),
        "gpt2": (RoundToNearest(4, 32, True).apply(tiny_subject("gpt2"), NO_DATA), "replaces Linear only"),
        "magnitude": (Magnitude(0.5).apply(tiny_subject("llama"), NO_DATA), "no packed codes"),
        "dense": (tiny_subject("llama"), "no layer is packed"),
        "mixed": (mixed(symmetric=False), "2 kinds of grid, expected one"),
    }
    for name, (subject, message) in cases.items():
        artifact.save(subject, tmp_path / name)
        with pytest.raises(Unsupported, match=message):
            to_compressed_tensors(tmp_path / name, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
