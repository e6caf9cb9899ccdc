"""Mixed precision: bits go where they take most error away, and never beyond the budget."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import is_compressed, layer_specs, weight_numel
from squeeze.models import architecture
from squeeze.models.prequantized import Grid, flattered
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.rtn_mixed import MixedRoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)


def mixed(**fields) -> MixedRoundToNearest:
    given = {"bits": 3, "high_bits": 8, "budget": 5.0, "ends": 0, "group_size": 32, "symmetric": True}
    return MixedRoundToNearest(**given | fields)


def test_the_choice_by_hand() -> None:
    """3 bits and 5 more: within 5.0 there is room for 40 of 100 weights. Gains per weight: c 0.3, a 0.2, b 0.1, d 0."""
    sizes = {"a": 30, "b": 10, "c": 20, "d": 40}
    gains = {"a": 6.0, "b": 1.0, "c": 6.0, "d": 0.0}
    assert mixed().chosen(sizes, set(), gains) == {"c", "b"}  # a no longer fits, b does
    assert mixed().chosen(sizes, {"a"}, gains) == {"b"}
    assert mixed(budget=5.5).chosen(sizes, set(), gains) == {"c", "a"}
    assert mixed(budget=3.0).chosen(sizes, set(), gains) == set()
    assert mixed(budget=8.0).chosen(sizes, set(), gains) == set(sizes)


def test_the_error_is_that_of_the_output() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 64, generator=generator), torch.randn(200, 64, generator=generator)
    x[:, 5] *= 20
    grid = affine.fit(weight, 3, 32, symmetric=True)
    difference = grid.dequantize(grid.quantize(weight), torch.float32) - weight
    expected = (x @ difference.T).square().sum() / (x @ weight.T).square().sum()
    found = mixed().error(weight, x.T @ x / len(x), 3)
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_budget_is_kept_and_worth_it(name: str) -> None:
    expected = tiny_model(name)(TOKEN_IDS)[0]
    subject = mixed().apply(tiny_subject(name), CALIBRATION)
    low = RoundToNearest(3, 32, True).apply(tiny_subject(name), CALIBRATION)
    layers = [module for module in subject.model.modules() if is_compressed(module)]
    average = sum(layer.bits * weight_numel(layer) for layer in layers) / sum(weight_numel(layer) for layer in layers)
    assert {layer.bits for layer in layers} == {3, 8}
    assert 4.0 < average <= 5.0
    assert subject.claims["bits"] == pytest.approx(average, abs=1e-3)
    assert subject.claims["high_layers"] == sum(layer.bits == 8 for layer in layers)
    assert (subject.claims["low_bits"], subject.claims["high_bits"]) == (3, 8)
    assert (subject.model(TOKEN_IDS)[0] - expected).norm() < (low.model(TOKEN_IDS)[0] - expected).norm()


def test_the_ends_have_many_bits() -> None:
    subject = mixed(ends=1, budget=8.0).apply(tiny_subject("llama"), CALIBRATION)  # two blocks: both are ends
    assert {module.bits for module in subject.model.modules() if is_compressed(module)} == {8}
    assert subject.claims["low_bits"] == 8
    assert len(architecture.blocks(subject.model)) == 2


def test_only_the_ends_are_ends() -> None:
    """Of thirteen blocks the first two and the last two; block 1 is not block 10."""
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=32, num_hidden_layers=13, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    subject = mixed(ends=2, budget=3 + 5 * 4 / 13).apply(Subject(model, None, {}), CALIBRATION)
    bits = [{layer.bits for layer in block.modules() if is_compressed(layer)} for block in model.model.layers]
    assert bits == [{8}] * 2 + [{3}] * 9 + [{8}] * 2
    assert subject.claims["bits"] == pytest.approx(3 + 5 * 4 / 13, abs=1e-3)


def test_a_grid_that_flatters_its_four_bit_layers_is_marked_whatever_the_average() -> None:
    """4.9 bits on average, and most layers in asymmetric groups that a grid of 16 levels fits too well."""
    subject = mixed(bits=4, symmetric=False).apply(tiny_subject("llama"), CALIBRATION)
    assert subject.claims["bits"] > 4
    assert flattered(Grid(levels=16, block=32, matrices=14), subject.claims)


@torch.no_grad()
def test_bits_go_to_the_layer_that_suffers_most() -> None:
    subject = tiny_subject("llama")
    layers = architecture.block_linears(subject.model)
    hurt = "model.layers.1.self_attn.k_proj"
    for layer in layers.values():  # zeros suffer nothing
        architecture.weight(layer).zero_()
    architecture.weight(layers[hurt]).normal_(generator=torch.Generator().manual_seed(0))
    share = architecture.weight(layers[hurt]).numel() / sum(
        architecture.weight(each).numel() for each in layers.values()
    )
    mixed(budget=3 + 5 * share + 1e-9).apply(subject, CALIBRATION)
    high = {name for name, layer in subject.model.named_modules() if getattr(layer, "bits", None) == 8}
    assert high == {hurt}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 8, "high_bits": 4}, "bits 8 and 4; expected two of 2, 3, 4, 8, the fewer first"),
        ({"bits": 4, "high_bits": 4}, "bits 4 and 4; expected two of"),
        (
            {"ends": 1, "budget": 7.9},
            r"budget 7.9 bits a weight; 1 block\(s\) at each end at 8 bits take 8.000 already",
        ),
        ({"group_size": 48}, "group_size 48 does not divide in_features 64"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(fields: dict[str, object], message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        mixed(**fields).apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)
