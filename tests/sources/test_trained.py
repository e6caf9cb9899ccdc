"""A model that squeeze fine-tunes is known by what it starts from, its sentences and its schedule."""

from __future__ import annotations

from typing import Any

import pytest

from squeeze.sources import identity, sentiment
from squeeze.sources.identity import baseline_hash, trained_place
from squeeze.sources.trained import base, is_trained

SCHEDULE = {"corpus": "sst2_train", "epochs": 2, "batch": 32, "tokens": 64, "learning_rate": 5e-5, "seed": 0}
MODEL: dict[str, Any] = {
    "name": "mine",
    "source": "trained:random:bert",
    "seed": 0,
    "fine_tuning": SCHEDULE,
    "kind": "classifier",
    "dtype": "float32",
}


def test_it_starts_from_a_model_of_the_same_pins() -> None:
    assert base(MODEL) == {
        "name": "mine",
        "source": "random:bert",
        "seed": 0,
        "kind": "classifier",
        "dtype": "float32",
    }
    assert is_trained(MODEL)
    assert not is_trained(base(MODEL))
    assert base(base(MODEL)) == base(MODEL)


@pytest.mark.parametrize("changed", [{"name": "other"}, {"dtype": "bfloat16"}])
def test_what_it_is_called_and_held_in_is_no_part_of_it(changed: dict[str, Any]) -> None:
    assert trained_place({**MODEL, **changed}) == trained_place(MODEL)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"source": "trained:random:llama"},
        *({"fine_tuning": {**SCHEDULE, name: 7}} for name in SCHEDULE if name != "corpus"),
    ],
)
def test_another_start_or_schedule_is_another_model(changed: dict[str, Any]) -> None:
    assert baseline_hash({**MODEL, **changed}) != baseline_hash(MODEL) != baseline_hash(base(MODEL))


def test_so_are_other_sentences_and_another_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    before = baseline_hash(MODEL)
    monkeypatch.setattr(identity, "corpus_hash", lambda _: "0" * 63 + "1")
    assert baseline_hash(MODEL) != before
    monkeypatch.undo()
    monkeypatch.setattr(identity, "TRAINING", identity.TRAINING + 1)
    assert baseline_hash(MODEL) != before


@pytest.mark.parametrize(("name", "other"), [("TRAIN_SHA256", "0" * 64), ("LONGEST", 32)])
def test_so_are_other_classes_and_another_cut_of_the_same_sentences(
    name: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trained_place(MODEL)
    monkeypatch.setattr(sentiment, name, other)
    assert trained_place(MODEL) != before
