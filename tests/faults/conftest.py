"""Each test has a cache and a list of jobs of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.sweeps import JOBS


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(JOBS, str(tmp_path / "jobs"))
