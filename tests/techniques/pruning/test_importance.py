"""Importance: held against gradients of the weights themselves, taken one window at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.models.layout import Coupled, group_size, layout
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning import importance as scoring
from squeeze.techniques.pruning.importance import CRITERIA, check_criterion, first_order, importance, magnitude
from tests.snippets import labelled
from tests.tiny import ARCHITECTURES, CAUSAL, tiny_model, tiny_subject

TEXT = CalibrationText(torch.randint(256, (5, 12), generator=torch.Generator().manual_seed(0)))
# Of a head: where its outputs lie in each layer that makes it, head after head.
HEADS = {
    "llama": [[range(32 * group, 32 * group + 32), *[range(16 * group, 16 * group + 16)] * 2] for group in range(2)],
    "gpt2": [[[64 * part + 16 * head + place for part in range(3) for place in range(16)]] for head in range(4)],
    "opt": [[range(16 * head, 16 * head + 16)] * 3 for head in range(4)],
    "gpt_neox": [[range(48 * head, 48 * head + 48)] for head in range(4)],
    "bert": [[range(16 * head, 16 * head + 16)] * 3 for head in range(4)],
}


def written_out(model: nn.Module, loss: Tensor, coupled: Coupled, rows: list[list[range]], width: int) -> Tensor:
    """|sum w dL/dw| of each group and block: (blocks, groups); rows: of each group, its outputs of each maker."""
    loss.backward()
    scores = torch.zeros((2, len(rows)), dtype=torch.float64)
    for number, block in enumerate(architecture.blocks(model)):
        products = {name: each * each.grad for name, each in block.named_parameters() if each.grad is not None}
        turned = model.config.model_type == "gpt2"  # its weights are (inputs, outputs)
        for group, of_makers in enumerate(rows):
            for name, places in zip(coupled.makers, of_makers, strict=True):
                weight = products[f"{name}.weight"].T if turned else products[f"{name}.weight"]
                scores[number, group] += weight[list(places)].sum()
                if f"{name}.bias" in products:
                    scores[number, group] += products[f"{name}.bias"][list(places)].sum()
            reader = products[f"{coupled.reader}.weight"]
            columns = slice(group * width, group * width + width)
            scores[number, group] += (reader[columns] if turned else reader[:, columns]).sum()
    model.zero_grad()
    return scores.abs().detach()


def next_token_loss(model: nn.Module, window: Tensor) -> Tensor:
    logits = model(window[None]).logits[0]
    return F.cross_entropy(logits[:-1], window[1:])


def parts(name: str, model: nn.Module) -> list[tuple[Coupled, int, list[list[range]]]]:
    where = layout(model)
    neurons = [[range(place, place + 1)] * len(where.up) for place in range(128)]
    return [(where.mlp, 1, neurons), (where.attention, group_size(model), HEADS[name])]


@pytest.mark.parametrize("name", CAUSAL)
def test_the_first_order_is_the_product_of_weights_and_their_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS", 24)  # two windows at a time, then one
    for which in range(2):
        model = tiny_model(name).requires_grad_(True)
        coupled, width, rows = parts(name, model)[which]
        losses = (next_token_loss(model, window) for window in TEXT.token_ids)
        expected = torch.stack([written_out(model, loss, coupled, rows, width) for loss in losses]).mean(dim=0)
        found = first_order(tiny_model(name), coupled, width, TEXT)
        torch.testing.assert_close(torch.stack(found), expected, atol=1e-7, rtol=1e-3)


def test_that_of_a_classifier_is_of_labelled_sentences() -> None:
    subject = tiny_subject("bert_classifier")
    text = replace(TEXT, labelled=labelled(subject))
    rows = text.labelled
    assert rows is not None
    for which in range(2):
        model = tiny_model("bert_classifier").requires_grad_(True)
        coupled, width, places = parts("bert", model)[which]
        expected = []
        for number in range(len(rows.labels)):
            one = rows.rows(torch.tensor([number]))
            loss = F.cross_entropy(model(one.input_ids, one.attention_mask).logits, one.labels)
            expected.append(written_out(model, loss, coupled, places, width))
        found = first_order(subject.model, coupled, width, text)
        torch.testing.assert_close(torch.stack(found), torch.stack(expected).mean(dim=0), atol=1e-7, rtol=1e-3)


def test_the_model_and_the_process_stay_as_they_were() -> None:
    model = tiny_model("llama")
    importance(model, layout(model).mlp, 1, TEXT, "first_order")
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def block_of(maker: list[list[float]], reader: list[list[float]]) -> nn.Module:
    """Three linear layers: two that make what the third reads."""
    layers = {"a": maker, "b": [[0.5 * value for value in row] for row in maker], "c": reader}
    block = nn.ModuleDict({name: nn.Linear(len(rows[0]), len(rows), bias=False) for name, rows in layers.items()})
    for name, rows in layers.items():
        block[name].weight.data = torch.tensor(rows)
    return block


def test_magnitude_and_wandas_score_by_hand() -> None:
    block = block_of([[1.0, -2.0], [0.0, 4.0]], [[3.0, -1.0]])
    coupled = Coupled(("a", "b"), "c")
    assert magnitude(block, coupled, 1).tolist() == [1.5 * 3 + 3, 1.5 * 4 + 1]
    norms = {"a": torch.tensor([10.0, 1.0]), "b": torch.tensor([10.0, 1.0]), "c": torch.tensor([2.0, 3.0])}
    assert magnitude(block, coupled, 1, norms).tolist() == [1.5 * 12 + 6, 1.5 * 4 + 3]
    assert magnitude(block, coupled, 2).tolist() == [1.5 * 7 + 4]


def test_sections_go_through_all_groups() -> None:
    maker = [[1.0], [2.0], [10.0], [20.0]]  # of two sections, each of two groups
    block = block_of(maker, [[0.0, 0.0]])
    assert magnitude(block, Coupled(("a",), "c", sections=2), 1).tolist() == [11, 22]
    assert magnitude(block, Coupled(("a",), "c"), 1).tolist() == [3, 30]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_wanda_reads_the_norms_of_inputs(name: str) -> None:
    model = tiny_model(name)
    coupled, width, rows = parts(name, model)[1]
    found = importance(model, coupled, width, TEXT, "wanda")
    for (_, block, inputs), scores in zip(TEXT.input_statistics(model), found, strict=True):
        sizes = {
            each: architecture.weight(block.get_submodule(each)).abs() * inputs[each].norms
            for each in (*coupled.makers, coupled.reader)
        }
        for group, of_makers in enumerate(rows):
            made = (sizes[each][list(places)].sum() for each, places in zip(coupled.makers, of_makers, strict=True))
            expected = sum(made) + sizes[coupled.reader][:, group * width : group * width + width].sum()
            torch.testing.assert_close(scores[group], expected.double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "by", "text", "error", "message"),
    [
        ("llama", "second_order", TEXT, Unsupported, "no criterion 'second_order'; expected one of first_order, wanda"),
        ("bert", "first_order", TEXT, Unsupported, "has no language-modelling head"),
        ("bert_classifier", "first_order", TEXT, Unsupported, "this text has no classes; take by=wanda"),
        ("llama", "first_order", CalibrationText.empty(), SqueezeError, "found no tokens"),
    ],
)
def test_what_a_criterion_reads_has_to_be_there(
    name: str, by: str, text: CalibrationText, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_criterion(tiny_model(name), text, by)


def test_criteria_are_checked_where_they_can_be_had() -> None:
    for by in CRITERIA:
        check_criterion(tiny_model("gpt2"), TEXT, by)


def test_the_loss_is_taken_of_the_first_windows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny_subject("llama", "float32")
    coupled = layout(subject.model).mlp
    token_ids = torch.randint(256, (6, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(scoring, "MOST_TOKENS", 47)
    few = first_order(subject.model, coupled, 1, CalibrationText(token_ids))
    monkeypatch.undo()
    expected = first_order(subject.model, coupled, 1, CalibrationText(token_ids[:2]))
    assert all(torch.equal(one, other) for one, other in zip(few, expected, strict=True))
    assert not torch.equal(few[0], first_order(subject.model, coupled, 1, CalibrationText(token_ids))[0])
