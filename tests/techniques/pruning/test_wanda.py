"""Wanda against its score written out, and on whole models."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import layer_specs
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.pruning.wanda import Wanda
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (6, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


@pytest.mark.parametrize(("sparsity", "run"), [(0.5, None), (0.25, None), (0.5, 4), (0.75, 8)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_row_loses_what_is_lowest_in_weight_times_input(name: str, sparsity: float, run: int | None) -> None:
    subject = Wanda(sparsity, run, sequential=False).apply(tiny_subject(name), CALIBRATION)
    for block_name, block, inputs in CALIBRATION.input_statistics(tiny_model(name)):
        for layer_name, statistics in inputs.items():
            weight = architecture.weight(block.get_submodule(layer_name))
            score = (weight.abs() * statistics.norms).reshape(len(weight), -1, run or weight.shape[1])
            sparse = subject.model.get_submodule(f"{block_name}.{layer_name}")
            pruned, bias = sparse.dequantize(), architecture.bias(block.get_submodule(layer_name))
            assert sparse.bias is bias is None or torch.equal(sparse.bias, bias)
            zero = (pruned == 0).reshape(score.shape)
            assert (zero.sum(-1) == sparsity * score.shape[-1]).all()
            highest_lost = score.masked_fill(~zero, -torch.inf).amax(-1)
            lowest_kept = score.masked_fill(zero, torch.inf).amin(-1)
            assert (highest_lost <= lowest_kept).all()
            assert torch.equal(pruned, weight.masked_fill(pruned == 0, 0))
    assert subject.claims == {"sparsity": sparsity, "inputs": "shared"}


@pytest.mark.parametrize("sequential", [True, False])
def test_it_loses_less_than_magnitude_where_inputs_differ(sequential: bool) -> None:
    def outlying(subject):
        for block in architecture.blocks(subject.model):
            block.input_layernorm.weight.data[:4] *= 20
            block.post_attention_layernorm.weight.data[:4] *= 20
        return subject

    expected = outlying(tiny_subject("llama")).model(TOKEN_IDS)[0]
    ours = Wanda(0.5, None, sequential).apply(outlying(tiny_subject("llama")), CALIBRATION).model(TOKEN_IDS)[0]
    theirs = Magnitude(0.5).apply(outlying(tiny_subject("llama")), CALIBRATION).model(TOKEN_IDS)[0]
    assert (ours - expected).norm() < 0.8 * (theirs - expected).norm()


def test_sequential_inputs_have_gone_through_pruned_predecessors() -> None:
    both = [Wanda(0.5, None, form).apply(tiny_subject("llama"), CALIBRATION).model for form in (True, False)]
    same = [
        torch.equal(*(model.get_submodule(f"model.layers.{block}.mlp.down_proj").mask for model in both))
        for block in (0, 1)
    ]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("sparsity", "run", "message"),
    [
        (1.0, None, r"cannot prune a share of 1\.0; expected 0 <= sparsity < 1"),
        (0.5, 3, "run 3 does not divide in_features 64"),
        (0.3, 4, r"sparsity 0\.3 of 4 weights is 1\.2; expected a whole number"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(sparsity: float, run: int | None, message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        Wanda(sparsity, run, sequential=False).apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)
