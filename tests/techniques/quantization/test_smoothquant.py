"""SmoothQuant: eq. 4 by hand, a model that stays what it was, and outliers that no longer hurt."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import layer_specs
from squeeze.layers.int8 import Int8Linear
from squeeze.models import architecture
from squeeze.models.folding import folds
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.smoothquant import SmoothQuant
from tests.tiny import CAUSAL, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


def with_outliers(name: str) -> Subject:
    """A model whose norms blow up three channels, and whose layers take that back: what large models look like."""
    subject = tiny_subject(name)
    for block in architecture.blocks(subject.model):
        for fold in folds(subject.model):
            if block.get_submodule(fold.producer).weight.ndim == 1:
                scales = torch.ones(len(fold.channels(block)))
                scales[:3] = 1 / 200
                fold.apply(block, scales)
    return subject


def test_the_papers_equation_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0, 0.0], [0.5, 1.0, 0.0]]), torch.tensor([[-4.0, 0.5, 0.0]])]
    inputs = torch.tensor([16.0, 0.5, 3.0])  # max|W_j| = 4, 2, 0
    assert SmoothQuant(0.5).scales(weights, inputs).tolist() == [2.0, 0.5, 1.0]
    assert SmoothQuant(1.0).scales(weights, inputs).tolist() == [16.0, 0.5, 1.0]
    assert SmoothQuant(0.0).scales(weights, inputs).tolist() == [0.25, 0.5, 1.0]
    assert SmoothQuant(0.5).scales(weights, torch.tensor([0.0, 0.5, 3.0])).tolist() == [1.0, 0.5, 1.0]


def test_half_and_half_makes_both_maxima_equal() -> None:
    """With alpha = 0.5 the largest weight and the largest input of every channel come to be the same (figure 5)."""
    subject = with_outliers("llama")
    name = "self_attn.q_proj"
    block_name, _, inputs = next(iter(CALIBRATION.input_statistics(subject.model)))
    SmoothQuant(0.5).apply(subject, CALIBRATION)
    smoothed = dict(subject.model.named_modules())
    layers = [smoothed[f"{block_name}.self_attn.{part}"].dequantize() for part in ("q_proj", "k_proj", "v_proj")]
    largest = torch.cat(layers).abs().amax(0)
    original = with_outliers("llama").model.get_submodule(block_name)
    before = torch.cat(
        [architecture.weight(original.self_attn.get_submodule(p)) for p in ("q_proj", "k_proj", "v_proj")]
    )
    scales = (inputs[name].max_abs / before.abs().amax(0)).sqrt()
    torch.testing.assert_close(largest, inputs[name].max_abs / scales, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_outliers_lose_their_harm(name: str) -> None:
    expected = with_outliers(name).model(TOKEN_IDS)[0]

    def error(alpha: float | None) -> float:
        subject = with_outliers(name)
        if alpha is None:  # no smoothing
            for layer_name, layer in architecture.block_linears(subject.model).items():
                quantized = Int8Linear.of(architecture.weight(layer), architecture.bias(layer))
                architecture.replace(subject.model, layer_name, quantized)
        else:
            subject = SmoothQuant(alpha).apply(subject, CALIBRATION)
        return float((subject.model(TOKEN_IDS)[0] - expected).norm() / expected.norm())

    assert error(0.5) < 0.25 * error(None)
    assert error(0.5) < 0.04


def test_every_layer_becomes_int8_and_the_unsmoothed_are_named() -> None:
    subject = SmoothQuant(0.5).apply(tiny_subject("llama"), CALIBRATION)
    assert len(layer_specs(subject.model)) == len(architecture.block_linears(tiny_model("llama")))
    assert subject.claims == {
        "bits": 8,
        "activation_bits": 8,
        "unscaled": ["self_attn.o_proj"],
    }


def test_what_it_cannot_do_is_refused_before_any_work() -> None:
    subject = tiny_subject("llama")
    for alpha in (1.5, -0.5):
        with pytest.raises(Unsupported, match=f"alpha is {alpha}; expected 0 to 1"):
            SmoothQuant(alpha).apply(subject, CALIBRATION)
    subject.model.config.model_type = "mamba"
    with pytest.raises(Unsupported, match="cannot be folded in mamba models"):
        SmoothQuant(0.5).apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)
