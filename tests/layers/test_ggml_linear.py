"""A layer of ggml's blocks computes what its blocks say, stored, loaded, and widened once."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
import torch.nn.functional as F

from squeeze.artifacts import format as artifact
from squeeze.layers.contract import live_bytes
from squeeze.layers.ggml_linear import GgmlLinear
from squeeze.models import architecture
from tests.tiny import tiny_subject

WEIGHT = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
NAME = "model.layers.1.mlp.up_proj"


def layer_of(kind: str, weight: torch.Tensor = WEIGHT, bias: torch.Tensor | None = None) -> GgmlLinear:
    blocks = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    return GgmlLinear.of(kind, torch.from_numpy(blocks), weight.shape[1], bias, torch.float32)


@pytest.mark.parametrize(("kind", "off"), [("Q4_0", 0.6), ("Q4_1", 0.35), ("Q5_0", 0.3), ("Q5_1", 0.2), ("Q8_0", 0.02)])
def test_it_multiplies_with_what_was_quantized(kind: str, off: float) -> None:
    bias, inputs = torch.arange(48.0), torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    layer = layer_of(kind, bias=bias)
    weight = layer.dequantize()
    assert 0 < (weight - WEIGHT).abs().max() < off
    torch.testing.assert_close(layer(inputs), F.linear(inputs, weight, bias))


def test_given_numbers_it_looks_up_rows_and_both_forms_agree() -> None:
    layer, numbers = layer_of("Q5_1"), torch.tensor([[3, 47], [3, 0]])
    weight = layer.dequantize().clone()
    assert torch.equal(layer(numbers), weight[numbers])
    stored_bits = layer.running_bits
    layer.prepare()
    assert torch.equal(layer.dequantize(), weight)
    assert torch.equal(layer(numbers), weight[numbers])
    assert (stored_bits, layer.running_bits) == (6.0, 32.0)
    assert live_bytes(layer) == WEIGHT.nbytes


@torch.inference_mode()
def test_an_artifact_keeps_its_blocks_bit_for_bit(tmp_path: Path) -> None:
    subject, token_ids = tiny_subject("llama"), torch.arange(24).reshape(2, 12)
    kept = layer_of("Q4_0", subject.model.get_submodule(NAME).weight)
    architecture.replace(subject.model, NAME, kept)
    expected = subject.model(token_ids).logits
    artifact.save(subject, tmp_path)
    stored = artifact.load(tmp_path, prepare=False)
    assert torch.equal(stored.model.get_submodule(NAME).blocks, kept.blocks)
    assert torch.equal(stored.model(token_ids).logits, expected)
    assert torch.equal(artifact.load(tmp_path).model(token_ids).logits, expected)
