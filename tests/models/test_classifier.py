"""Classifiers load as other models do; an encoder gets a new head where it is to become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.models import architecture
from squeeze.models.load import load_baseline, load_with_new_head
from tests.sources.test_trained import MODEL
from tests.tiny import tiny_subject

CLASSES = ("negative", "positive")


def saved(folder: Path, name: str) -> dict[str, Any]:
    """A tiny model as files on the disk, and the source that names it."""
    subject = tiny_subject(name)
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return {"source": f"file:{folder}", "kind": "encoder" if name == "bert" else "classifier", "dtype": "float32"}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(24).reshape(2, 12)).logits
    return found


@pytest.mark.parametrize("name", ["bert_classifier", "llama_classifier"])
def test_a_random_classifier_tells_two_classes_apart(name: str) -> None:
    model = tiny_subject(name).model
    assert logits(model).shape == (2, 2)
    assert architecture.is_classifier(model)
    assert architecture.classes(model) == 2
    assert len(architecture.blocks(model)) == 2
    assert not architecture.is_classifier(tiny_subject("llama").model)


def test_texts_are_enclosed() -> None:
    assert tiny_subject("bert_classifier").tokenizer("ab")["input_ids"] == [258, 97, 98, 259]


def test_a_saved_classifier_loads_with_the_same_outputs(tmp_path: Path) -> None:
    loaded = load_baseline(saved(tmp_path, "bert_classifier")).model
    assert torch.equal(logits(loaded), logits(tiny_subject("bert_classifier").model))


def test_an_encoder_is_no_classifier_until_it_has_a_head(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"2 weights are missing, classifier\.bias among them"):
        load_baseline({**saved(tmp_path, "bert"), "kind": "classifier"})


def test_the_new_head_is_drawn_and_all_else_taken_over(tmp_path: Path) -> None:
    source = saved(tmp_path, "bert")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found, again, other = (load_with_new_head(source, CLASSES, seed).model for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    taken = dict(tiny_subject("bert").model.named_parameters())
    assert all(torch.equal(parameter, taken[name]) for name, parameter in found.bert.named_parameters())
    assert torch.equal(found.classifier.weight, again.classifier.weight)
    assert not torch.equal(found.classifier.weight, other.classifier.weight)
    assert 0.01 < found.classifier.weight.std() < 0.03
    assert not found.classifier.bias.any()
    assert found.config.id2label == {0: "negative", 1: "positive"}
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_pooler_may_be_missing_but_no_block(tmp_path: Path) -> None:
    source = saved(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    for gone, fine in (("pooler.dense.weight", True), ("encoder.layer.1.output.dense.weight", False)):
        weights.pop(gone)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        if fine:
            assert load_with_new_head(source, CLASSES, 0).model.bert.pooler.dense.weight.std() < 0.03
        else:
            with pytest.raises(IntegrityError, match=rf"1 weights are missing, bert\.{gone} among them"):
                load_with_new_head(source, CLASSES, 0)


def test_three_classes_make_a_head_of_three(tmp_path: Path) -> None:
    found = load_with_new_head(saved(tmp_path, "bert"), ("bad", "so so", "good"), 0).model
    assert logits(found).shape == (2, 3)


def test_a_model_that_is_not_fine_tuned_yet_says_who_does_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path))
    with pytest.raises(SqueezeError, match="trained:random:bert is not fine-tuned yet; `squeeze run` does that"):
        load_baseline(MODEL)


def test_the_blocks_of_distilbert_are_found(tmp_path: Path) -> None:
    from transformers import DistilBertConfig

    config = DistilBertConfig(vocab_size=260, dim=64, hidden_dim=128, n_layers=2, n_heads=4)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert len(architecture.blocks(model)) == 2
    assert len(architecture.block_linears(model)) == 2 * 6
    assert not {"pre_classifier", "classifier"} & architecture.block_linears(model).keys()
