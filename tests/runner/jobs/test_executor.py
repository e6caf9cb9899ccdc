"""What the processes of a run are given; tests/faults has them at work."""

from __future__ import annotations

from pathlib import Path

from squeeze.core.cache import cache_root, using
from squeeze.runner.jobs.executor import worker_variables
from tests.faults.sweeps import RUNTIME


def test_workers_have_the_cache_of_their_run(tmp_path: Path) -> None:
    assert worker_variables(RUNTIME)["SQUEEZE_CACHE"] == str(cache_root())
    with using(tmp_path):
        assert worker_variables(RUNTIME)["SQUEEZE_CACHE"] == str(tmp_path)
