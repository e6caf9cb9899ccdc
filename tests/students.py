"""What tests of students share: deeper models, blocks that do nothing, and loading without squeeze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from squeeze.artifacts import format as artifact
from squeeze.models import architecture
from squeeze.models.layout import layout
from squeeze.models.settings import quiet
from squeeze.models.subject import Subject
from squeeze.models.tiny import SHAPES
from tests.tiny import CAUSAL, tiny_subject

TOKEN_IDS = torch.arange(24).reshape(2, 12) * 7 % 251


def subject_of(name: str, dtype: str = "float32", **sizes: Any) -> Subject:
    """The tiny model of that architecture in other sizes; ``layers`` in every architecture's own word."""
    if "layers" in sizes:
        sizes["n_layer" if name == "gpt2" else "num_hidden_layers"] = sizes.pop("layers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, name, {**SHAPES[name], **sizes})
        return tiny_subject(name, dtype)


@torch.inference_mode()
def outputs(model: nn.Module) -> Tensor:
    """Logits of a causal model, hidden states of an encoder."""
    return model(TOKEN_IDS)[0]


def silence(model: nn.Module, *places: int) -> None:
    """Let these blocks add nothing to what goes through them."""
    where = layout(model)
    for place in places:
        for name in (where.down, where.output):
            layer = architecture.blocks(model)[place].get_submodule(name)
            for part in (architecture.weight(layer), architecture.bias(layer)):
                if part is not None:
                    part.zero_()


def loads_alone(subject: Subject, folder: Path, name: str) -> nn.Module:
    """Save an artifact; hold what transformers makes of its folder against what squeeze does, and return it."""
    artifact.save(subject, folder)
    kind = AutoModelForCausalLM if name in CAUSAL else AutoModel
    with quiet():
        model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.to_dict() == artifact.load(folder).model.config.to_dict()
    assert torch.equal(outputs(model), outputs(artifact.load(folder).model))
    assert torch.equal(outputs(model), outputs(subject.model))
    return model


def rotation(size: int = 64) -> Tensor:
    """Orthonormal columns, (size, size), in no particular direction."""
    return torch.linalg.qr(torch.randn((size, size), generator=torch.Generator().manual_seed(0))).Q


def within(model: nn.Module, basis: Tensor) -> None:
    """Let all of a Llama that writes to its hidden states write within the span of a basis, (hidden, narrow)."""
    onto = basis @ basis.T
    table = model.get_input_embeddings().weight.data
    table.copy_(table @ onto)
    for block in architecture.blocks(model):
        for layer in (block.self_attn.o_proj, block.mlp.down_proj):
            layer.weight.data.copy_(onto @ layer.weight.data)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Hold outputs against each other, up to what sums in another order make of them."""
    torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)
