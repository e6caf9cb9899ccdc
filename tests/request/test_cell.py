"""Cells: identity by content, labels left out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from squeeze.core import paths
from squeeze.core.hashing import canonical
from squeeze.request.cell import DEFAULT_CALIBRATION, Cell

CELL = Cell(
    model={"name": "tiny", "source": "random:llama", "dtype": "float32"},
    technique={
        "name": "rtn",
        "family": "quantization",
        "steps": [{"_target_": "rtn.RoundToNearest", "bits": 4, "group_size": None}],
    },
    runtime={"name": "eager", "_target_": "eager.Eager", "device": "cpu", "threads": 2},
    protocol={"name": "smoke", "rounds": 5},
)


def test_key_is_the_sha256_of_the_canonical_request() -> None:
    assert len(CELL.key) == 64
    assert CELL.key == Cell.from_json(json.loads(json.dumps(CELL.to_json()))).key


def test_key_ignores_labels_at_every_depth() -> None:
    renamed = replace(
        CELL, technique={**CELL.technique, "name": "other", "family": "x"}, model={**CELL.model, "name": "m"}
    )
    assert renamed.key == CELL.key


def test_key_ignores_the_order_of_fields() -> None:
    reordered = replace(CELL, model=dict(reversed(list(CELL.model.items()))))
    assert reordered.key == CELL.key


@pytest.mark.parametrize(
    "change",
    [
        {"model": {**CELL.model, "dtype": "bfloat16"}},
        {"technique": {**CELL.technique, "steps": [{**CELL.technique["steps"][0], "bits": 3}]}},
        {"calibration": {"corpus": "c4"}},
        {"runtime": {**CELL.runtime, "threads": 1}},
        {"protocol": {**CELL.protocol, "rounds": 7}},
        {"replicate": 1},
    ],
)
def test_any_other_change_changes_the_key(change: dict[str, object]) -> None:
    assert replace(CELL, **change).key != CELL.key


def test_what_a_cell_is_compared_with_runs_eagerly_with_as_much_of_the_machine() -> None:
    eager = {"name": "eager", "_target_": "eager.Eager", "device": "cpu", "threads": 2}
    for own in (eager, {**eager, "name": "other", "_target_": "other.Other", "more": 1}):
        found = replace(CELL, runtime=own)
        assert found.baseline("bfloat16").runtime == found.eager_runtime == eager
        assert found.is_eager is (own is eager)
    assert replace(CELL, runtime={**eager, "name": "called otherwise"}).is_eager
    assert not replace(CELL, runtime={**eager, "attention": "another"}).is_eager


def test_label_names_model_technique_and_variant() -> None:
    assert CELL.label == "tiny-rtn-4-row"
    assert CELL.baseline("bfloat16").label == "tiny-none-bfloat16"


def test_what_changes_an_artifact_shows_in_its_label() -> None:
    [step] = CELL.technique["steps"]
    options = {"symmetric": False, "ranges": "mse", "embed_bits": 8, "double_quant": True}
    technique = {**CELL.technique, "steps": [{**step, **options}]}
    assert replace(CELL, technique=technique).label == "tiny-rtn-4-row-asym-mse-e8-dq"


def test_a_label_names_the_text_of_calibration_where_it_is_another_than_by_default() -> None:
    labels = [replace(CELL, calibration={"name": name, "corpus": "c4"}).label for name in ("wikipedia", "c4")]
    assert labels == ["tiny-rtn-4-row", "tiny-rtn-4-row-c4"]
    defaults = (paths.conf() / "config.yaml").read_text()
    assert f"calibration: {DEFAULT_CALIBRATION}\n" in defaults


def test_baseline_keeps_protocol_and_runtime_and_drops_the_rest() -> None:
    baseline = replace(CELL, calibration={"corpus": "c4"}, replicate=3).baseline("float32")
    assert baseline.technique["steps"] == []
    assert (baseline.calibration, baseline.replicate) == ({}, 0)
    assert (baseline.protocol, baseline.runtime) == (CELL.protocol, CELL.runtime)


def test_canonical_text_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical({"x": float("nan")})


SCHEDULE = {"training_steps": 8, "windows": 1, "learning_rate": 0.1}


def training(*fields: dict[str, object]) -> str | None:
    """What a cell whose steps have these fields shares with its control."""
    steps = [{"_target_": "some.Technique", **each} for each in fields]
    return replace(CELL, technique={**CELL.technique, "steps": steps}).training


def test_a_chain_that_trains_twice_is_trained_as_a_control_of_all_its_steps() -> None:
    chain = training({"bits": 8}, SCHEDULE, {"bits": 4}, {**SCHEDULE, "training_steps": 4})
    assert chain == training({**SCHEDULE, "training_steps": 12})
    assert chain != training(SCHEDULE)
    assert training({"bits": 8}, SCHEDULE) == training(SCHEDULE)
    assert training({"bits": 8}) is None


@pytest.mark.parametrize("other", [{"learning_rate": 0.2}, {"windows": 2}])
def test_one_whose_steps_are_trained_unlike_has_no_control(other: dict[str, object]) -> None:
    alone = [{**SCHEDULE, **fields, "training_steps": steps} for fields in ({}, other) for steps in (8, 16)]
    chain = training(SCHEDULE, {**SCHEDULE, **other})
    assert chain not in {training(each) for each in alone}
    assert chain not in {training({**SCHEDULE, **other}, SCHEDULE), None}
