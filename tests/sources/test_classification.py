"""Sets of labelled texts are read whole or in part, known by their content, and calibrated on by nobody."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from squeeze.core.errors import IntegrityError
from squeeze.sources import classification, corpora, overlap, task_data

WORDS = "a film that is as funny as it is long and never once forgets its audience"
TEXTS = [WORDS, "bad", "good"]


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(classification.SETS, "sst2", lambda: (TEXTS, [1, 0, 1]))


def test_the_first_items_with_their_classes() -> None:
    assert classification.items("sst2") == (TEXTS, [1, 0, 1])
    assert classification.items("sst2", 2) == (TEXTS[:2], [1, 0])


@pytest.mark.parametrize("other", [lambda: (TEXTS, [1, 0, 0]), lambda: ([*TEXTS[:2], "goof"], [1, 0, 1])])
def test_a_set_is_known_by_its_texts_and_its_classes(
    monkeypatch: pytest.MonkeyPatch, other: Callable[[], classification.Labelled]
) -> None:
    before = task_data.hashes(["sst2"], [])
    assert before == {"task sst2": classification.content_hash("sst2")}
    monkeypatch.setitem(classification.SETS, "sst2", other)
    assert task_data.hashes(["sst2"], []) != before


def test_a_classifier_is_not_calibrated_on_sentences_that_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path_factory.mktemp("cache")))
    text = " ".join(f"word{number}" for number in range(50))
    monkeypatch.setattr(corpora, "text_or_file", lambda name: f"{text} {WORDS}" if name == "copied" else text)
    protocol = {"items": None}
    overlap.check({"corpus": "honest"}, protocol, asked=["sst2"])
    with pytest.raises(IntegrityError, match=r"calibration on copied: .* stand in sst2"):
        overlap.check({"corpus": "copied"}, protocol, asked=["sst2"])
