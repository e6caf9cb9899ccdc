"""What a cached quality depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from squeeze.runner.results import Artifact, Measured
from squeeze.runner.stages import quality_key
from tests.faults.sweeps import PROTOCOL, cell


def key(**changes: Any) -> str:
    subject = cell("good", protocol={**PROTOCOL, **changes})
    return quality_key(Measured(subject, Path("log"), Artifact(Path(), "k" * 64, {"content_hash": "c" * 64})), None)


@pytest.mark.parametrize(
    "changes", [{"generations": {"prompts": 8, "tokens": 32}}, {"items": 7}, {"token_budget": 7}, {"seed": 7}]
)
def test_a_quality_is_that_of_what_was_asked(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


def test_how_often_a_row_is_timed_is_no_part_of_its_quality() -> None:
    assert key(rounds=7, name="another") == key()
