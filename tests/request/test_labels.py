"""Cells that share a label get one of their own, and no other does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from squeeze.request.cell import Cell
from squeeze.request.labels import Labelled, distinct

WIKIPEDIA = {"name": "wikipedia", "corpus": "wikipedia_train", "samples": 128, "seed": 0}
STEP = {"_target_": "gptq.Gptq", "bits": 4, "clip": True}
CELL = Cell(
    model={"name": "m", "dtype": "bfloat16"},
    technique={"name": "gptq", "family": "quantization", "steps": [STEP]},
    calibration=WIKIPEDIA,
    runtime={"name": "eager", "device": "cpu"},
    protocol={"name": "smoke", "rounds": 8, "tasks": []},
)


def labels(*cells: Cell) -> list[str]:
    return distinct([Labelled.of(cell) for cell in cells])


@pytest.mark.parametrize(
    ("changes", "own", "other"),
    [
        ({"calibration": {**WIKIPEDIA, "samples": 8}}, "samples=128", "samples=8"),
        ({"calibration": {**WIKIPEDIA, "samples": 8, "seed": 1}}, "samples=128,seed=0", "samples=8,seed=1"),
        ({"technique": {**CELL.technique, "steps": [{**STEP, "clip": False}]}}, "clip=true", "clip=false"),
        ({"model": {**CELL.model, "dtype": "float32"}}, "dtype=bfloat16", "dtype=float32"),
        ({"protocol": {"name": "paper", "rounds": 10, "tasks": ["a"]}}, "smoke", "paper"),
        ({"runtime": {"name": "compile", "device": "cpu", "mode": "max"}}, "eager", "compile"),
        ({"protocol": {**CELL.protocol, "tasks": ["a b"]}}, "tasks=__", "0=a_b"),
    ],
)
def test_two_recipes_never_share_a_label(changes: dict[str, Any], own: str, other: str) -> None:
    cells = (CELL, replace(CELL, **changes))
    assert cells[0].label == cells[1].label == "m-gptq-4"
    found = labels(*cells)
    assert len({*found}) == 2
    if "tasks" not in own:
        assert found == [f"m-gptq-4@{own}", f"m-gptq-4@{other}"]


def test_a_label_that_is_enough_stays_and_equal_cells_share_theirs() -> None:
    three = replace(CELL, technique={**CELL.technique, "steps": [{**STEP, "bits": 3}]})
    assert labels(CELL, three, CELL) == ["m-gptq-4", "m-gptq-3", "m-gptq-4"]


def test_what_has_no_word_is_told_by_its_key() -> None:
    long = "x" * 40
    cells = [replace(CELL, model={**CELL.model, "source": f"{long}{end}"}) for end in "ab"]
    assert labels(*cells) == [f"m-gptq-4@source={'x' * 24},{cell.key[:8]}" for cell in cells]


def test_a_label_names_a_row_in_a_shell_and_a_file() -> None:
    hostile = replace(CELL, calibration={**WIKIPEDIA, "corpus": "../a b;$(x)"})
    assert labels(CELL, hostile)[1] == "m-gptq-4@corpus=.._a_b___x_"
