"""A GGUF of floats, read by transformers, computes what the model computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from squeeze.models import gguf_file
from squeeze.models.subject import Subject
from tests.gguf_files import kinds, values
from tests.tiny import tiny_subject

TOKEN_IDS = torch.arange(24).reshape(2, 12)
FILE = "model.gguf"


def written(subject: Subject, folder: Path) -> Path:
    gguf_file.write(subject, gguf_file.tensors(subject.model), folder / FILE)
    return folder / FILE


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("tied", [False, True])
def test_another_reader_computes_the_same(tied: bool, tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    if tied:
        subject.model.lm_head.weight = subject.model.model.embed_tokens.weight
    written(subject, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, dtype=torch.float32)
    torch.testing.assert_close(theirs(TOKEN_IDS).logits, subject.model(TOKEN_IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_floats_stay_what_they_are_and_vectors_are_float32(dtype: str, kind: str, tmp_path: Path) -> None:
    subject = tiny_subject("llama", dtype)
    path = written(subject, tmp_path)
    assert {name: found for name, found in kinds(path).items() if found != kind or "norm" in name} == {
        name: "F32" for name in kinds(path) if "norm" in name
    }
    found = torch.from_numpy(values(path)["blk.1.ffn_up.weight"])
    assert torch.equal(found, subject.model.model.layers[1].mlp.up_proj.weight.float())


def test_biases_go_the_way_of_their_rows(tmp_path: Path) -> None:
    subject = tiny_subject("gpt_neox")
    layer = subject.model.gpt_neox.layers[0].attention.query_key_value
    found = values(written(subject, tmp_path))
    rows = layer.weight.view(4, 3, 16, 64).transpose(0, 1).reshape(192, 64)
    assert torch.equal(torch.from_numpy(found["blk.0.attn_qkv.weight"]), rows)
    assert torch.equal(
        torch.from_numpy(found["blk.0.attn_qkv.bias"]), layer.bias.view(4, 3, 16).transpose(0, 1).flatten()
    )
    assert {name.rpartition(".")[2] for name in found if "norm" in name} == {"weight", "bias"}
    assert sum(name.startswith("blk.1.") for name in found) == 12


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(written(tiny_subject("llama"), tmp_path / name))
    assert paths[0].read_bytes() == paths[1].read_bytes()
