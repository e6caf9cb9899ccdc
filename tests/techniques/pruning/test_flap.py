"""FLAP: what is removed gives its mean, which a bias keeps; blocks may have sizes of their own, within one budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters, linear
from squeeze.models import architecture
from squeeze.models.layout import Coupled, layout
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.flap import (
    FLAP,
    allocated,
    bundled,
    compensate,
    fluctuation,
    measured,
    moments,
    standardised,
)
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.students import assert_near, loads_alone, outputs
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TEXT = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))
WITH_BIASES = [name for name in ARCHITECTURES if name != "llama"]


@torch.no_grad()
def read(model: nn.Module, name: str) -> list[Tensor]:
    """What the layer of this name reads in each block: (tokens, in_features)."""
    seen: list[list[Tensor]] = [[] for _ in architecture.blocks(model)]
    handles = [
        block.get_submodule(name).register_forward_pre_hook(lambda _, inputs, into=into: into.append(inputs[0]))
        for block, into in zip(architecture.blocks(model), seen, strict=True)
    ]
    model(TEXT.token_ids)
    for handle in handles:
        handle.remove()
    return [torch.cat([each.flatten(0, -2) for each in into]).double() for into in seen]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_are_those_of_what_a_layer_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squeeze.techniques.pruning.flap.TOKENS", 64)  # two windows at a time
    model, where = tiny_model(name), layout(tiny_model(name))
    found = moments(model, (where.down, where.output), TEXT.token_ids)
    for reader in (where.down, where.output):
        for rows, of_block in zip(read(model, reader), found, strict=True):
            mean, variance = of_block[reader]
            torch.testing.assert_close(mean, rows.mean(dim=0), atol=1e-7, rtol=1e-5)
            torch.testing.assert_close(variance, rows.var(dim=0), atol=1e-9, rtol=1e-4)


def test_fluctuation_is_the_variance_of_an_input_and_the_square_of_its_column() -> None:
    weight = torch.tensor([[1.0, 2.0], [0.0, -3.0]])
    assert fluctuation(weight, torch.tensor([5.0, 0.5])).tolist() == [5, 6.5]


def test_scores_are_standardised_and_bundled() -> None:
    assert standardised(torch.tensor([1.0, 3.0, 1.0, 3.0])).tolist() == [-1, 1, -1, 1]
    assert standardised(torch.ones(3)).tolist() == [0, 0, 0]
    assert bundled(torch.tensor([1.0, 8.0, 4.0, 3.0]), 2).tolist() == [6, 2]


def test_a_group_of_heads_has_the_mean_of_its_channels_standardised_scores() -> None:
    model, where = tiny_model("llama"), layout(tiny_model("llama"))
    neurons, heads = measured(model, TEXT.token_ids, 8)
    for found in neurons.scores:
        assert float(found.mean()) == pytest.approx(0, abs=1e-9)
        assert float(found.std(correction=0)) == pytest.approx(1)
    for block, rows, found in zip(architecture.blocks(model), read(model, where.output), heads.scores, strict=True):
        squares = architecture.weight(block.get_submodule(where.output)).double().square().sum(dim=0)
        scores = rows.var(dim=0) * squares
        scores = (scores - scores.mean()) / scores.var(correction=0).sqrt()
        expected = torch.stack([scores[:32].mean(), scores[32:].mean()])  # two groups of two heads of 16 channels
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, [3, 2]),
        (0.8, [3, 1]),  # 3 + 10 of 23 weights are a share of 0.565; the second of the other place does not fit
        (0.57, [3, 1]),
        (0.56, [2, 1]),
        (0.1, [1, 1]),  # one of each place, whatever it costs
    ],
)
def test_the_best_of_all_places_share_one_budget(share: float, expected: list[int]) -> None:
    scores = [torch.tensor([9.0, 3.0, 2.0]), torch.tensor([-5.0, -6.0])]
    assert allocated(scores, [3, 20], share) == expected


def test_a_better_one_that_does_not_fit_ends_it() -> None:
    scores = [torch.tensor([9.0, 1.0]), torch.tensor([9.0, 5.0])]
    assert allocated(scores, [2, 20], 0.7) == [1, 1]


def test_a_bias_is_made_or_grows_by_what_the_mean_gives() -> None:
    mean, removed = torch.tensor([10.0, 100.0, 1.0]).double(), torch.tensor([True, False, True])
    layer = linear(torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), None)
    compensate(layer, removed, mean)
    assert layer.bias.tolist() == [13, -1]
    compensate(layer, removed, mean)
    assert layer.bias.tolist() == [26, -2]
    untouched = linear(torch.ones(2, 3), None)
    compensate(untouched, torch.zeros(3, dtype=torch.bool), mean)
    assert untouched.bias is None


def survivors(before: Tensor, after: Tensor) -> Tensor:
    """Which columns of a matrix are in what is left of it: (columns,) bool."""
    return (before[:, :, None] == after[:, None, :]).all(dim=0).any(dim=1)


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_the_dense_model_whose_removed_channels_are_their_means(name: str, structure: str) -> None:
    pruned = FLAP(0.6, structure).apply(tiny_subject(name), TEXT).model  # type: ignore[arg-type]
    dense, where = tiny_model(name), layout(tiny_model(name))
    for reader in (where.down, where.output):
        means = [rows.mean(dim=0).float() for rows in read(tiny_model(name), reader)]
        for block, other, mean in zip(architecture.blocks(dense), architecture.blocks(pruned), means, strict=True):
            weights = (architecture.weight(each.get_submodule(reader)) for each in (block, other))
            kept = survivors(*weights)
            assert 0 < kept.sum() <= 128
            block.get_submodule(reader).register_forward_pre_hook(
                lambda _, inputs, kept=kept, mean=mean: (torch.where(kept, inputs[0], mean),)
            )
    assert_near(outputs(pruned), outputs(dense))
    assert not torch.allclose(outputs(pruned), outputs(tiny_model(name)), atol=1e-3)


def still(model: nn.Module) -> None:
    """Let every other neuron, and one head of each block, give the same whatever is read."""
    where = layout(model)
    for place, block in enumerate(architecture.blocks(model)):
        for name in where.up:
            architecture.weight(block.get_submodule(name))[place::2] = 0
        attention = where.heads[-1]  # values, or what has them last
        rows = architecture.weight(block.get_submodule(attention))
        rows[values(model, len(rows), head=place)] = 0


def values(model: nn.Module, rows: int, head: int) -> slice:
    """Where the values of a head are made."""
    if model.config.model_type == "gpt_neox":
        return slice(48 * head + 32, 48 * head + 48)
    return slice(rows - 64 + 16 * head, rows - 64 + 16 * head + 16)


@pytest.mark.parametrize("name", WITH_BIASES)
def test_what_is_constant_goes_first_and_its_bias_makes_up_for_it_exactly(name: str) -> None:
    subject = tiny_subject(name)
    still(subject.model)
    with torch.no_grad():
        expected = subject.model(TEXT.token_ids)[0]  # on any other text, neurons that were silent on this one may wake
        pruned = FLAP(0.75, "uniform", multiple=1).apply(subject, TEXT)
        assert_near(pruned.model(TEXT.token_ids)[0], expected)
    assert pruned.claims.items() >= {"channels_kept": 0.75, "heads_kept": 0.75, "loads_with": "squeeze"}.items()
    assert count_parameters(pruned.model) < count_parameters(tiny_model(name))


def weights_of(model: nn.Module, coupled: Coupled) -> list[int]:
    """The weights that a block's channels run through, of each block."""
    names = (*coupled.makers, coupled.reader)
    blocks = architecture.blocks(model)
    return [sum(architecture.weight(block.get_submodule(name)).numel() for name in names) for block in blocks]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adaptive_blocks_have_sizes_of_their_own_within_the_budget(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    first = architecture.blocks(subject.model)[0]
    where = layout(subject.model)
    architecture.weight(first.get_submodule(where.down))[:, :112] *= 1e-3  # a few stand out of a block's many
    whole = [weights_of(subject.model, coupled) for coupled in (where.mlp, where.attention)]
    pruned = FLAP(0.6, "adaptive").apply(subject, TEXT)
    left = [weights_of(pruned.model, coupled) for coupled in (where.mlp, where.attention)]
    total = sum(map(sum, whole))
    dearest = max(whole[1]) // (2 if name == "llama" else 4)
    assert 0.6 * total - dearest < sum(map(sum, left)) <= 0.6 * total
    assert left[0][0] != left[0][1]
    widths = [architecture.weight(block.get_submodule(where.down)).shape[1] for block in
              architecture.blocks(pruned.model)]  # fmt: skip
    assert all(width % 8 == 0 for width in widths)
    assert pruned.claims["channels_kept"] == sum(widths) / 256
    assert pruned.claims["loads_with"] == "squeeze"
    artifact.save(pruned, tmp_path)
    assert torch.equal(outputs(artifact.load(tmp_path).model), outputs(pruned.model))


@pytest.mark.parametrize("name", WITH_BIASES)
def test_where_no_bias_is_new_and_all_heads_stay_transformers_loads_it(name: str, tmp_path: Path) -> None:
    pruned = FLAP(0.9, "uniform").apply(tiny_subject(name), TEXT)  # 0.9 of 4 heads are 4
    assert pruned.claims == {"channels_kept": 0.875, "parameters": count_parameters(tiny_model(name))}
    loads_alone(pruned, tmp_path, name)


def test_a_llama_has_its_new_biases_on_its_own_and_is_quantized_with_them(tmp_path: Path) -> None:
    subject = FLAP(0.5, "uniform").apply(tiny_subject("llama"), TEXT)
    assert subject.claims["loads_with"] == "squeeze"
    layers = subject.model.model.layers  # type: ignore[union-attr]
    assert all(each.mlp.down_proj.bias is not None for each in layers)  # type: ignore[union-attr]
    assert all(each.mlp.up_proj.bias is None for each in layers)  # type: ignore[union-attr]
    subject = RoundToNearest(4, 32, symmetric=True).apply(subject, TEXT)
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path, prepare=False)
    assert torch.equal(outputs(loaded.model), outputs(subject.model))
    assert loaded.claims["loads_with"] == "squeeze"


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_all_may_stay(structure: str) -> None:
    pruned = FLAP(1.0, structure).apply(tiny_subject("llama"), TEXT)  # type: ignore[arg-type]
    assert torch.equal(outputs(pruned.model), outputs(tiny_model("llama")))
    assert pruned.claims == {"parameters": count_parameters(pruned.model)}


@pytest.mark.parametrize(
    ("technique", "error", "message"),
    [
        (FLAP(0.0, "uniform"), Unsupported, r"flap cannot keep a share of 0\.0; expected more than 0, at most 1"),
        (FLAP(0.5, "other"), Unsupported, "no structure 'other'; expected"),  # type: ignore[arg-type]
        (FLAP(0.5, "adaptive", multiple=48), Unsupported, "multiple 48 does not divide 128 neurons"),
        (FLAP(0.5, "adaptive", multiple=0), Unsupported, "multiple 0 does not divide 128 neurons"),
    ],
)
def test_what_cannot_be_is_refused(technique: FLAP, error: type[Exception], message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(error, match=message):
        technique.apply(subject, TEXT)
    assert torch.equal(outputs(subject.model), outputs(tiny_model("llama")))


def test_without_text_or_after_blocks_have_their_own_sizes_it_says_so() -> None:
    with pytest.raises(SqueezeError, match="flap needs text"):
        FLAP(0.5, "uniform").apply(tiny_subject("llama"), CalibrationText.empty())
    subject = FLAP(0.7, "adaptive").apply(tiny_subject("gpt2"), TEXT)
    with pytest.raises(Unsupported, match="expected one number of all; put the step that gives blocks sizes"):
        FLAP(0.5, "uniform").apply(subject, TEXT)
