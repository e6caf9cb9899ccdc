"""TEAL: thresholds at the quantiles of the inputs, in front of weights that stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers import thresholded
from squeeze.layers.contract import matrices
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.thresholded import ColumnsLinear, Thresholded
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.teal import TEAL, magnitudes, quantile
from squeeze.techniques.quantization.bitsandbytes import Float4
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)
ROUND = RoundToNearest(4, 32, symmetric=True)


def thresholds(subject: Subject) -> dict[str, Thresholded]:
    return {name: module for name, module in subject.model.named_modules() if isinstance(module, Thresholded)}


@torch.no_grad()
def outputs(subject: Subject) -> torch.Tensor:
    return subject.model(TOKEN_IDS)[0]


@torch.no_grad()
def inputs_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """What each linear layer of the uncompressed model reads."""
    seen: dict[str, torch.Tensor] = {}
    for name, layer in architecture.block_linears(model).items():
        layer.register_forward_pre_hook(lambda _, arguments, name=name: seen.__setitem__(name, arguments[0]))
    model(TOKEN_IDS)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_each_threshold_leaves_the_share_that_was_asked_for(sparsity: float, dtype: str) -> None:
    subject = TEAL(sparsity).apply(tiny_subject("llama", dtype), CALIBRATION)
    read = inputs_of(tiny_model("llama", dtype))
    found = thresholds(subject)
    assert found.keys() == read.keys()
    for name, layer in found.items():
        share = float((read[name].abs() <= layer.threshold).float().mean())
        assert share == pytest.approx(sparsity, abs=0.01)
        if dtype == "bfloat16":
            assert share >= sparsity
    assert subject.claims == {"input_sparsity": sparsity}


def test_the_quantile_is_the_least_magnitude_that_suffices() -> None:
    layer = nn.Linear(4, 1)
    model = Reader(layer, torch.tensor([[1.0, -2.0, 0.5, 4.0]]))
    counts = magnitudes(model, [layer], torch.zeros((3, 2), dtype=torch.int64))[layer]
    assert int(counts.sum()) == 4
    for share, expected in ((0.25, 0.5), (0.3, 1.0), (0.5, 1.0), (0.75, 2.0), (0.99, 4.0)):
        threshold = quantile(counts, share)
        assert torch.tensor(threshold).to(torch.bfloat16) == expected
        assert expected <= threshold < 1.01 * expected
    assert quantile(counts, 0.0) == 0.0
    assert quantile(torch.zeros_like(counts), 0.5) == 0.0, "no token reached the layer"


class Reader(nn.Module):
    """A model whose layer reads the same whatever the tokens are."""

    def __init__(self, layer: nn.Module, inputs: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, **_: Any) -> torch.Tensor:
        return self.layer(self.inputs)


def test_zeros_that_are_there_are_enough() -> None:
    counts = torch.zeros(2**15, dtype=torch.int64)
    counts[0], counts[16256] = 6, 4  # as behind a ReLU; 1.0
    assert quantile(counts, 0.5) == 0.0
    assert quantile(counts, 0.7) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_computes_with_masked_inputs(name: str, tmp_path: Path) -> None:
    subject = TEAL(0.4).apply(tiny_subject(name), CALIBRATION)
    masked = tiny_subject(name)
    for path, layer in thresholds(subject).items():
        architecture.replace(masked.model, path, Masked(masked.model.get_submodule(path), layer.threshold))
    assert torch.allclose(outputs(subject), outputs(masked), atol=1e-5)
    assert (outputs(subject) - outputs(tiny_subject(name))).abs().max() > 1e-3
    artifact.save(subject, tmp_path / "own")
    artifact.save(tiny_subject(name), tmp_path / "baseline")
    own, baseline = ((tmp_path / each / "model.safetensors").stat().st_size for each in ("own", "baseline"))
    assert abs(own - baseline) < 4096, "names of tensors alone"
    loaded = artifact.load(tmp_path / "own")
    assert [each.threshold for each in thresholds(loaded).values()] == [
        each.threshold for each in thresholds(subject).values()
    ]
    assert torch.allclose(outputs(loaded), outputs(subject), atol=1e-5)


class Masked(nn.Module):
    def __init__(self, layer: nn.Module, threshold: float) -> None:
        super().__init__()
        self.layer, self.threshold = layer, threshold

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs * (inputs.abs() > self.threshold))


def test_what_decodes_is_what_is_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Token by token, through the skipping kernel, as in one forward of the text."""
    monkeypatch.setattr(thresholded, "SKIPS_OF", 0)
    calls = []
    real = thresholded.skipped
    monkeypatch.setattr(thresholded, "skipped", lambda *arguments: calls.append(1) or real(*arguments))
    artifact.save(TEAL(0.7).apply(tiny_subject("llama"), CALIBRATION), tmp_path)
    model = artifact.load(tmp_path).model
    with torch.no_grad():
        scored = model(TOKEN_IDS[:1]).logits
        assert not calls
        cache, decoded = None, []
        for token in TOKEN_IDS[0]:
            out = model(token[None, None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            decoded.append(out.logits)
    assert len(calls) > 100
    assert torch.allclose(torch.cat(decoded, dim=1), scored, atol=1e-4)


def test_steps_around_it_keep_what_they_are_for(tmp_path: Path) -> None:
    before = ROUND.apply(TEAL(0.4).apply(tiny_subject("llama"), CALIBRATION), CALIBRATION)
    after = TEAL(0.4).apply(ROUND.apply(tiny_subject("llama"), CALIBRATION), CALIBRATION)
    for number, subject in enumerate((before, after)):
        assert len(thresholds(subject)) == 14
        assert {type(layer) for _, layer in matrices(subject.model)} == {QuantizedLinear}
        assert subject.claims["input_sparsity"] == 0.4
        assert subject.claims["bits"] == 4
        artifact.save(subject, tmp_path / str(number))
        assert torch.equal(outputs(artifact.load(tmp_path / str(number), prepare=False)), outputs(subject))


def test_what_blocks_share_they_share_afterwards(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    first, second = subject.model.model.layers
    second.mlp = first.mlp
    made = TEAL(0.4).apply(subject, CALIBRATION)
    first, second = made.model.model.layers
    assert first.mlp.up_proj is second.mlp.up_proj
    assert type(first.mlp.up_proj.base) is ColumnsLinear
    artifact.save(made, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path, prepare=False)), outputs(made))


def in_nf4() -> Subject:
    return Float4("nf4", False).apply(tiny_subject("llama", "bfloat16"), CALIBRATION)


@pytest.mark.parametrize(
    ("make", "sparsity", "text", "error", "said"),
    [
        (lambda: tiny_subject("llama"), 1.0, CALIBRATION, Unsupported, r"teal cannot zero a share of 1\.0"),
        (in_nf4, 0.5, CALIBRATION, Unsupported, "is a Linear4bit, a library's own; expected floats, or codes of ours"),
        (lambda: tiny_subject("llama"), 0.5, CalibrationText.empty(), SqueezeError, "teal has no tokens"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(
    make: Any, sparsity: float, text: CalibrationText, error: type[Exception], said: str
) -> None:
    subject = make()
    before = dict(subject.model.named_modules())
    with pytest.raises(error, match=said):
        TEAL(sparsity).apply(subject, text)
    assert dict(subject.model.named_modules()) == before
