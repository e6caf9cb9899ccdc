"""Classifiers are asked sets of labelled texts, and nobody else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeeze.core.errors import SqueezeError
from squeeze.request.cell import Cell
from squeeze.request.expand import cells
from tests.planted import place

CLASSIFIER = "source: random:bert\nseed: 0\nkind: classifier\ndtype: ${dtype}\n"


def planned(folder: Path, *overrides: str) -> list[Cell]:
    place(folder, "model", "sorter", CLASSIFIER)
    return cells(["technique=none", *overrides], folder)


def test_a_classifier_is_asked_what_the_protocol_classify_asks(tmp_path: Path) -> None:
    [cell] = planned(tmp_path, "model=sorter", "protocol=classify")
    assert (cell.protocol["tasks"], cell.protocol["ranked_by"]) == (["sst2"], "accuracy")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("model=sorter protocol=smoke", "protocol.tasks: [] of protocol 'smoke' ask nothing of sorter, a classifier"),
        ("model=sorter protocol=standard", "expected one of sst2: choose protocol=classify"),
        ("model=tiny_llama protocol=classify", "sst2 of protocol 'classify' is for models of kind classifier"),
        ("model=tiny_bert protocol=classify", "tiny_bert is of kind encoder: choose another protocol"),
        ("model=sorter protocol=classify protocol.tasks=[sst2,sciq]", "sst2 is for classifiers and sciq for language"),
        ("model=sorter protocol=classify protocol.tasks=[sst3]", "'sst3' is not allowed; did you mean 'sst2'?"),
        ("model=sorter protocol=classify protocol.ranked_by=perplexity", "ranked_by: 'perplexity' is not allowed"),
        ("model=tiny_llama protocol=smoke protocol.ranked_by=accuracy", "ranked_by: 'accuracy' is not allowed"),
    ],
)
def test_what_does_not_suit_is_refused_in_one_line(tmp_path: Path, overrides: str, reason: str) -> None:
    with pytest.raises(SqueezeError) as caught:
        planned(tmp_path, *overrides.split())
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
