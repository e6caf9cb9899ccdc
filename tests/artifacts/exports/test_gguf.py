"""An exported GGUF, read by the ``gguf`` package and by transformers, is the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.gguf import FILE, to_gguf
from squeeze.cli import main
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_compressed
from squeeze.layers.ggml_linear import GgmlLinear
from squeeze.models import architecture
from squeeze.models.gguf_names import parts
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.fastv import FastV
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.hqq import HQQ
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.gguf_files import kinds, values
from tests.tiny import tiny_subject

TOKEN_IDS = torch.arange(24).reshape(2, 12)
NO_DATA = CalibrationText.empty()
TECHNIQUES: dict[str, tuple[Any, str]] = {
    "Q4_0": (RoundToNearest(4, 32, True), "Q4_0"),
    "of two blocks": (RoundToNearest(4, 64, True), "Q4_0"),
    "of 3 bits": (RoundToNearest(3, 32, True), "Q4_0"),
    "Q8_0": (RoundToNearest(8, None, True, grid="absmax"), "Q8_0"),
    "Q4_1": (RoundToNearest(4, 32, False), "Q4_1"),
    "real zero points": (HQQ(4, 32), "Q4_1"),
    "zeros": (Magnitude(0.5), "F32"),
    "uncompressed": (None, "F32"),
}


def exported(subject: Subject, folder: Path) -> Path:
    artifact.save(subject, folder / "artifact")
    to_gguf(folder / "artifact", folder / "exported")
    return folder / "exported" / FILE


def made(technique: Any, name: str = "llama") -> Subject:
    return tiny_subject(name) if technique is None else technique.apply(tiny_subject(name), NO_DATA)


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize(("technique", "kind"), TECHNIQUES.values(), ids=TECHNIQUES)
def test_another_reader_computes_what_the_artifact_computes(technique: Any, kind: str, tmp_path: Path) -> None:
    subject = made(technique)
    path = exported(subject, tmp_path)
    assert {found for name, found in kinds(path).items() if "blk" in name and "norm" not in name} == {kind}
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=FILE, dtype=torch.float32)
    expected = subject.model(TOKEN_IDS).logits
    off = 0.01 if kind == "Q4_1" else 1e-5  # float16 rounds minima
    torch.testing.assert_close(theirs(TOKEN_IDS).logits, expected, rtol=off, atol=off * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_move_whole_and_no_value_changes(name: str, bits: int, tmp_path: Path) -> None:
    subject = made(RoundToNearest(bits, 32, True), name)
    found = values(exported(subject, tmp_path))
    seen = 0
    for part in parts(subject.model):
        layer = subject.model.get_submodule(part.module)
        if is_compressed(layer):
            rows = layer.dequantize() if part.rows is None else layer.dequantize()[part.rows]
            assert torch.equal(torch.from_numpy(found[f"{part.name}.weight"]), rows), part.name
            seen += 1
    assert seen == 2 * {"llama": 7, "gpt_neox": 4}[name]


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("embed_bits", "kind"), [(8, "Q8_0"), (4, "Q4_0")])
def test_a_rounded_table_that_is_embedding_and_head_is_written_once(embed_bits: Any, kind: str, tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    subject.model.lm_head.weight = subject.model.model.embed_tokens.weight
    subject.model.config.tie_word_embeddings = True
    subject = RoundToNearest(4, 32, True, embed_bits=embed_bits).apply(subject, NO_DATA)
    path = exported(subject, tmp_path)
    assert kinds(path)["token_embd.weight"] == kind
    assert "output.weight" not in kinds(path)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=FILE, dtype=torch.float32)
    expected = subject.model(TOKEN_IDS).logits
    torch.testing.assert_close(theirs(TOKEN_IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_codes_stored_without_those_of_zeros_are_all_there(tmp_path: Path) -> None:
    pruned = Magnitude(0.7).apply(tiny_subject("llama"), NO_DATA)
    subject = RoundToNearest(4, 32, True, zeros_left_out=True).apply(pruned, NO_DATA)
    path = exported(subject, tmp_path)
    assert kinds(path)["blk.0.ffn_up.weight"] == "Q4_0"
    ours = subject.model.get_submodule("model.layers.0.mlp.up_proj").dequantize()
    assert torch.equal(torch.from_numpy(values(path)["blk.0.ffn_up.weight"]), ours)


def test_blocks_of_ggml_go_through_bit_for_bit(tmp_path: Path) -> None:
    """Of queries, whose rows move: random bytes, whatever they mean."""
    subject, name = tiny_subject("llama"), "model.layers.0.self_attn.q_proj"
    blocks = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 34 * 2), dtype=np.uint8))
    architecture.replace(subject.model, name, GgmlLinear.of("Q8_0", blocks, 64, None, torch.float32))
    path = exported(subject, tmp_path)
    order = next(part.rows for part in parts(subject.model) if part.module == name)
    found = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.attn_q.weight")
    assert np.array_equal(found.data, blocks[order].numpy())


def test_the_command_says_how_to_load_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact.save(made(RoundToNearest(4, 32, True)), tmp_path / "artifact")
    assert main(["export", "--format", "gguf", str(tmp_path / "artifact"), str(tmp_path / "exported")]) == 0
    shown = capsys.readouterr().out
    assert f"llama_cpp.Llama('{tmp_path / 'exported' / FILE}')" in shown
    assert [path.name for path in (tmp_path / "exported").iterdir()] == [FILE]


def test_what_the_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    cases = {
        "gpt2": (made(RoundToNearest(4, 32, True), "gpt2"), "gpt2 is not written as GGUF"),
        "kmeans": (made(KMeans(4, None)), "no place for a CodebookLinear"),
        "zero points": (made(RoundToNearest(8, 32, False)), "no 8-bit codes with zero points"),
        "groups": (made(RoundToNearest(4, 16, True)), "groups of 16 are no multiple"),
        "cache": (made(KIVI(4, 8)), "through a cache of its own"),
        "pictures": (tiny_subject("llava"), "llava is not written as GGUF"),
        "pruned pictures": (FastV(0.5).apply(tiny_subject("llava"), NO_DATA), "no word for its form VisualPruning"),
    }
    for name, (subject, message) in cases.items():
        with pytest.raises(Unsupported, match=message):
            exported(subject, tmp_path / name)
        assert not (tmp_path / name / "exported").exists()
