"""Records: JSON and back without loss; foreign data is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from squeeze.core.errors import IntegrityError
from squeeze.records.record import Estimate, Record, Status, counting
from squeeze.request.cell import Cell

CELL = Cell(
    model={"name": "tiny", "dtype": "float32"},
    technique={"name": "none", "family": "baseline", "steps": []},
    runtime={"device": "cpu"},
    protocol={"name": "smoke"},
)
RECORD = Record(
    cell=CELL.to_json(),
    key=CELL.key,
    artifact_key="a",
    fingerprint="f",
    status=Status.DIVERGED,
    attempt="1",
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:01:00+00:00",
    environment={"hardware": {}, "software": {}},
    reason="perplexity 60000 above the vocabulary size 49152",
    estimates={"perplexity": Estimate(13.4), "decode_speedup": Estimate(1.5, 1.4, 1.6, 0.001, 5)},
    block_nll=(2.5, 2.75),
    flags=("unsteady",),
)


def test_json_round_trip_is_exact() -> None:
    assert Record.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


def test_unknown_parts_of_an_estimate_are_left_out() -> None:
    assert RECORD.to_json()["estimates"]["perplexity"] == {"value": 13.4}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.update(schema=99),
        lambda data: data.update(status="fine"),
        lambda data: data.pop("estimates"),
        lambda data: data.update(unheard_of=1),
        lambda data: data["estimates"].update(perplexity=13.4),
        lambda data: data.pop("key"),
    ],
)
def test_foreign_data_is_refused(spoil: Any) -> None:
    data = RECORD.to_json()
    spoil(data)
    with pytest.raises(IntegrityError):
        Record.from_json(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data.update(key="0" * 64), "one of them was changed"),
        (lambda data: data["cell"]["model"].update(dtype="bfloat16"), "one of them was changed"),
        (
            lambda data: data["cell"]["protocol"].pop("name"),
            "cell: Object missing required field `name` - at `\\$.protocol`",
        ),
        (lambda data: data["cell"].update(colour="red"), "colour"),
        (lambda data: data["cell"].update(technique=None), "not a valid record"),
        (lambda data: data.update(cell="tiny"), "not a valid record"),
        (lambda data: data["cell"]["technique"].update(steps=[{"bits": [4]}]), "bits is list, expected a scalar"),
    ],
)
def test_a_cell_that_is_none_or_another_than_the_key_says_is_refused(spoil: Any, words: str) -> None:
    data = json.loads(json.dumps(RECORD.to_json()))
    spoil(data)
    with pytest.raises(IntegrityError, match=words):
        Record.from_json(data)


def test_what_others_said_is_made_printable_and_only_that() -> None:
    said = replace(RECORD, reason="\x1b[31mfailed\nbadly\u202e", log_tail="one\x07\ntwo  three")
    found = Record.from_json(said.to_json())
    assert (found.reason, found.log_tail) == ("failed badly", "one\ntwo three")


def test_counts_stay_exact() -> None:
    found = Record.from_json(replace(RECORD, estimates={"bytes": Estimate(2**53)}).to_json())
    assert isinstance(found.estimates["bytes"].value, int)


@pytest.mark.parametrize("data", [[], "text", None, {}])
def test_other_json_is_refused(data: Any) -> None:
    with pytest.raises(IntegrityError, match="schema"):
        Record.from_json(data)


def test_of_attempts_at_one_row_the_newest_official_one_counts() -> None:
    early, late = replace(RECORD, finished="2026-01-01T00:00:01"), replace(RECORD, finished="2026-01-01T00:00:02")
    shared = replace(RECORD, finished="2026-01-01T00:00:03", isolation="shared")
    elsewhere = replace(RECORD, fingerprint="0" * 64)
    assert counting([late, shared, elsewhere, early]) == {late.row: late, elsewhere.row: elsewhere}
    assert counting([shared]) == {shared.row: shared}
    assert late.row == (late.key, late.artifact_key, late.fingerprint)
