"""An exported folder holds the artifact's weights, read by the published layout and not by our packing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.gptq import to_gptq
from squeeze.cli import main
from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.hqq import HQQ
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

NO_DATA = CalibrationText.empty()
HOW = ("quant_method", "bits", "group_size", "sym", "desc_act", "lm_head", "pack_dtype")
# Of 3 bits: (word, shift) of 32 codes in three words, as AutoGPTQ packs them; two codes lie across words.
THREE_BITS = [(0, 3 * i) for i in range(10)] + [None] + [(1, 3 * i + 1) for i in range(10)] + [None]
THREE_BITS += [(2, 3 * i + 2) for i in range(10)]


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"),
    [(2, 32, True), (3, 32, True), (3, None, False), (4, 64, True), (4, 32, False), (8, None, True), (8, 16, False)],
)
def test_it_holds_the_weights_bit_for_bit(
    name: str, bits: int, group_size: int | None, symmetric: bool, tmp_path: Path
) -> None:
    rounded = RoundToNearest(bits, group_size, symmetric).apply(with_a_zero_point_of_0(tiny_subject(name)), NO_DATA)
    artifact.save(rounded, tmp_path / "artifact")
    assert main(["export", "--format", "gptq", str(tmp_path / "artifact"), str(tmp_path / "exported")]) == 0
    config = json.loads((tmp_path / "exported" / "config.json").read_text())["quantization_config"]
    assert {key: config[key] for key in HOW} == {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size or -1,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": False,
        "pack_dtype": "int32",
    }
    tensors = load_file(tmp_path / "exported" / "model.safetensors")
    ours = artifact.load(tmp_path / "artifact", prepare=False).model
    for layer_name, layer in ours.named_modules():
        if isinstance(layer, QuantizedLinear):
            parts = {part: tensors.pop(f"{layer_name}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")}
            assert parts["scales"].dtype.itemsize == 2
            assert torch.equal(weights(**parts, bits=bits, version=config["checkpoint_format"]), layer.dequantize())
    left = ours.state_dict()
    assert all(torch.equal(tensor, left[key]) for key, tensor in tensors.items())
    assert {key for key in left if key.endswith((".bias", "norm.weight"))} <= tensors.keys()


def weights(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor, bits: int, version: str
) -> torch.Tensor:
    """(out_features, in_features) by the formula of the format's readers."""
    codes = torch.tensor([unpacked(column, bits) for column in qweight.T.tolist()])
    zeros = torch.tensor([unpacked(row, bits) for row in qzeros.tolist()]).T
    zeros = zeros + {"gptq": 1, "gptq_v2": 0}[version]
    return (codes - zeros[:, g_idx]) * scales.float().T[:, g_idx]


def unpacked(words: list[int], bits: int) -> list[int]:
    words = [word % 2**32 for word in words]
    if bits != 3:
        return [word >> shift & (2**bits - 1) for word in words for shift in range(0, 32, bits)]
    codes: list[int] = []
    for low, middle, high in zip(*(iter(words),) * 3, strict=True):
        found = [0 if place is None else (low, middle, high)[place[0]] >> place[1] & 7 for place in THREE_BITS]
        found[10] = low >> 30 | (middle & 1) << 2
        found[21] = middle >> 31 | (high & 3) << 1
        codes += found
    return codes


def with_a_zero_point_of_0(subject: Subject) -> Subject:
    for layer in architecture.block_linears(subject.model).values():
        architecture.weight(layer)[3].abs_()  # a row of positive weights
    return subject


def test_only_zero_points_less_one_are_version_1(tmp_path: Path) -> None:
    for symmetric, version in ((True, "gptq"), (False, "gptq_v2")):
        subject = RoundToNearest(4, 32, symmetric).apply(with_a_zero_point_of_0(tiny_subject("llama")), NO_DATA)
        artifact.save(subject, tmp_path / version)
        exported = tmp_path / f"exported-{version}"
        to_gptq(tmp_path / version, exported)
        config = json.loads((exported / "config.json").read_text())["quantization_config"]
        assert config["checkpoint_format"] == version
        qzeros = load_file(exported / "model.safetensors")["model.layers.0.self_attn.q_proj.qzeros"]
        zeros = {zero for row in qzeros.tolist() for zero in unpacked(row, 4)}
        assert zeros == {7} if symmetric else 0 in zeros


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    narrow = RoundToNearest(2, 32, True).apply(tiny_subject("llama"), NO_DATA)
    replaced(narrow, "model.layers.0.mlp.up_proj", nn.Linear(64, 24, bias=False), bits=2)
    short = RoundToNearest(2, None, True).apply(tiny_subject("llama"), NO_DATA)
    replaced(short, "model.layers.0.mlp.up_proj", nn.Linear(24, 128, bias=False), bits=2, group_size=24)
    several = RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_DATA)
    replaced(several, "model.layers.0.mlp.up_proj", nn.Linear(64, 128, bias=False), bits=8)
    partly = RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_DATA)
    architecture.replace(partly.model, "model.layers.0.mlp.up_proj", nn.Linear(64, 128, bias=False))
    odd = tiny_subject("llama")
    for name, layer in architecture.block_linears(odd.model).items():
        replaced(odd, name, layer, bits=5)
    cases = {
        "odd": (odd, "5 bits, the GPTQ format has 2, 3, 4 and 8"),
        "narrow": (narrow, "out_features 24 x 2 bits do not fill whole words"),
        "short": (short, "in_features 24 x 2 bits do not fill whole words"),
        "several": (several, "2 kinds of grid, the GPTQ format has one"),
        "partly": (partly, "up_proj is not packed"),
        "hqq": (HQQ(4, 32).apply(tiny_subject("llama"), NO_DATA), "zero points lie between codes"),
        "kmeans": (KMeans(4, None).apply(tiny_subject("llama"), NO_DATA), "no packed codes"),
        "embedding": (RoundToNearest(4, 32, True, embed_bits=8).apply(tiny_subject("llama"), NO_DATA), "Conv1D only"),
    }
    for name, (subject, message) in cases.items():
        artifact.save(subject, tmp_path / name)
        with pytest.raises(Unsupported, match=message):
            to_gptq(tmp_path / name, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def replaced(subject: Subject, name: str, plain: nn.Linear, bits: int, group_size: int = 32) -> None:
    """Put ``plain``, rounded to ``bits``, in the place of a layer."""
    weight = plain.weight.data
    grid = affine.fit(weight, bits, group_size, True)
    architecture.replace(subject.model, name, QuantizedLinear.of(grid.quantize(weight), grid, None, weight.dtype))
