"""A classifier learns the sentences it is shown: all of them once an epoch, padded as far as they must be."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Labelled, Workplace
from squeeze.techniques.training.finetune_classifier import FinetuneClassifier
from squeeze.techniques.training.sentence_training import cross_entropy, logits, sentences_for, shuffled, train_all
from squeeze.techniques.training_loop import Plan
from tests.snippets import TRAIN, labelled
from tests.tiny import tiny_subject

NO_TEXT = torch.empty((0, 0), dtype=torch.int64)


def test_an_epoch_shows_each_sentence_once_in_another_order() -> None:
    order = shuffled(5, 12, seed=0)
    assert order.shape == (12, 1)
    first, second = order[:5, 0].tolist(), order[5:10, 0].tolist()
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second
    assert torch.equal(order, shuffled(5, 12, seed=0))
    assert not torch.equal(order, shuffled(5, 12, seed=1))


def test_rows_are_padded_to_the_longest_of_them() -> None:
    ids = torch.arange(12).reshape(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    found = Labelled(ids, mask, torch.tensor([0, 1, 1])).rows(torch.tensor([1, 0]))
    assert found.input_ids.tolist() == [[4, 5], [0, 1]]
    assert found.attention_mask.tolist() == [[1, 0], [1, 1]]
    assert found.labels.tolist() == [1, 0]


def test_padding_does_not_change_what_a_sentence_is() -> None:
    subject = tiny_subject("bert_classifier")
    rows = labelled(subject)
    with torch.no_grad():
        alone = torch.cat([logits(subject.model, rows.rows(torch.tensor([i]))) for i in range(len(TRAIN))])
        assert torch.allclose(alone, logits(subject.model, rows), atol=1e-5)


def test_the_loss_is_that_of_transformers() -> None:
    subject = tiny_subject("bert_classifier")
    rows = labelled(subject)
    with torch.no_grad():
        theirs = subject.model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels
        ).loss
        assert torch.allclose(cross_entropy(subject.model, rows), theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_the_classes_and_says_what_it_read(dtype: str) -> None:
    subject = tiny_subject("bert_classifier", dtype)
    rows = labelled(subject)
    before = {name: parameter.clone() for name, parameter in subject.model.named_parameters()}
    claims = FinetuneClassifier(40, 6, 3e-3).apply(subject, CalibrationText(NO_TEXT, labelled=rows)).claims
    with torch.no_grad():
        assert (logits(subject.model, rows).argmax(-1) == rows.labels).all()
    parameters = dict(subject.model.named_parameters())
    assert {parameter.dtype for parameter in parameters.values()} == {getattr(torch, dtype)}
    assert not any(parameter.requires_grad for parameter in parameters.values())
    assert not any(torch.equal(before[name], parameters[name]) for name in ("classifier.weight", "classifier.bias"))
    assert claims["training_tokens"] == 40 * 6 // len(TRAIN) * int(rows.attention_mask.sum())
    assert claims["trainable_parameters"] == sum(parameter.numel() for parameter in parameters.values())


def test_a_class_that_the_model_does_not_have_is_refused() -> None:
    subject = tiny_subject("bert_classifier")
    rows = labelled(subject, [("good", 1), ("a third kind", 2)])
    with pytest.raises(Unsupported, match="a class 2, but BertForSequenceClassification tells 2 apart"):
        sentences_for(subject.model, CalibrationText(NO_TEXT, labelled=rows))


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)

    def run(folder: Path | None, killed_after: int | None = None) -> dict[str, torch.Tensor]:
        subject, seen = tiny_subject("bert_classifier"), []

        def loss(sentences: Labelled) -> torch.Tensor:
            seen.append(sentences)
            if len(seen) == killed_after:
                raise KeyboardInterrupt
            return cross_entropy(subject.model, sentences)

        plan, rows = Plan(6, 4, 1e-3), labelled(subject)
        train_all(subject.model, loss, rows, plan, seed=0, title="made up", workplace=Workplace(folder))
        return {**subject.model.state_dict(), "losses": torch.tensor(len(seen))}

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed_after=4)
    continued = run(tmp_path)
    assert int(continued.pop("losses")) < int(whole.pop("losses"))
    assert all(torch.equal(continued[name], tensor) for name, tensor in whole.items())


def test_it_is_deterministic() -> None:
    found = []
    for _ in range(2):
        subject = tiny_subject("bert_classifier")
        loss = partial(cross_entropy, subject.model)
        train_all(
            subject.model, loss, labelled(subject), Plan(3, 4, 1e-3), seed=0, title="made up", workplace=Workplace()
        )
        found.append(subject.model.state_dict())
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
