"""What readers of a record would stumble over is refused in words; what is merely odd is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from squeeze.records import schema
from squeeze.records.record import Estimate, Record
from tests.fabricated import ENVIRONMENT, smoke_records

RECORD = smoke_records()[6]


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": {**ENVIRONMENT, "of": {"tomorrow": [1, None, "\N{GREEK SMALL LETTER MU}", 2**63 - 1]}}},
        {"environment": {**ENVIRONMENT, "path": r"C:\new\table and a \\u001b that is spelt"}},
        {"claimed": {"bits": None, "sparsity": 0.5, "deep": nested(schema.DEEPEST - 2)}},
        {"realised": {"of_tomorrow": "words", "decode_checked": True, "energy": "counted", "levels": 15}},
        {"estimates": {"perplexity": Estimate(1e300), "acc_arc-easy.v2": Estimate(0)}},
        {"stages": {"overhead": -0.01}},
        {"realised": {"steps": [{"step": "none", "perplexity_held_out": None, "of": "tomorrow"}]}},
        {"realised": {"steps": [{"step": "none", "accuracy_held_out": 0.875}, {"step": "none"}]}},
        {"samples": {}},
        {"started": "2026-01-01T00:00:00", "finished": "2026-01-01T00:00:00.5+00:00"},
    ],
)
def test_what_is_merely_odd_is_read(changes: dict[str, Any]) -> None:
    schema.check(replace(RECORD, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": {}}, "environment: Object missing required field `hardware`"),
        ({"environment": {**ENVIRONMENT, "x": "\x1b[0m"}}, "environment holds a control character"),
        ({"environment": {**ENVIRONMENT, "x": "\x7f"}}, "environment holds a control character"),
        ({"environment": {**ENVIRONMENT, "x\u202e": 1}}, "environment holds a control character"),
        ({"environment": {**ENVIRONMENT, "x": r"\\" + "\n"}}, "environment holds a control character"),
        (
            {"environment": {**ENVIRONMENT, "x": [2**63]}},
            "environment holds an integer beyond 9,223,372,036,854,775,807",
        ),
        ({"claimed": {"deep": nested(schema.DEEPEST)}}, f"claimed is nested deeper than {schema.DEEPEST}"),
        ({"claimed": {"bits": "four"}}, r"claimed: Expected `int | float | null`, got `str` - at `\$.bits`"),
        ({"realised": {"bytes": "many"}}, "realised.bytes is str, expected a number"),
        ({"realised": {"steps": [{"of": "none"}]}}, "realised: Object missing required field `step`"),
        ({"realised": {"steps": [{"step": "a", "accuracy_held_out": "all"}]}}, r"null`, got `str` - at `\$.steps"),
        ({"realised": {"steps": "three"}}, "realised: Expected `array`, got `str`"),
        ({"realised": {"training_tokens": "many"}}, "realised.training_tokens is str, expected a number"),
        ({"realised": {"control": "none"}}, "realised.control has the name of a column that boards compute"),
        ({"estimates": {"x_bytes": Estimate(2.0**60)}}, "x_bytes is 1.15e\\+18, expected at most"),
        ({"estimates": {"ttft_ms": Estimate(1.0, high=2.0)}}, "ttft_ms has one end of an interval, expected both"),
        ({"samples": {"file": "x.npz"}}, "samples without file or sha256"),
        ({"finished": "2026-02-30T00:00:00+00:00"}, "day is out of range"),
    ],
)
def test_what_a_reader_would_stumble_over_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schema.check(replace(RECORD, **changes))


def test_a_refusal_repeats_no_expression() -> None:
    data = {**RECORD.to_json(), "attempt": "a/b"}
    with pytest.raises(Exception, match=r"^not a valid record: Expected another kind of word - at `\$.attempt`$"):
        Record.from_json(data)
