"""Launch the made-up jobs of tests/faults in a worker that forks, and in one that spawns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from squeeze.runner.jobs.launcher import Launcher
from tests.faults.sweeps import JOBS, WORKER, ours, wait_until


@pytest.fixture(params=["fork", "spawn"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    monkeypatch.setenv(JOBS, str(tmp_path / "jobs"))
    command = (*WORKER, "--fork") if request.param == "fork" else WORKER
    with Launcher(tmp_path / "worker.log", command=command) as made:
        yield made
    assert wait_until(lambda: not ours(os.environ[JOBS]), 5), "processes were left behind"
