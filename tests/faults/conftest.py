"""Each test has a cache and a list of jobs of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.sweeps import settle_in


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)
