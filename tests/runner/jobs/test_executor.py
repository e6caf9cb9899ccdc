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


def test_compiled_products_are_kept_as_anyone_keeps_them() -> None:
    """With 64 of them, a model whose 30 blocks have ranks of their own decoded at 0.4 of its speed."""
    assert not [name for name in worker_variables(RUNTIME) if name.startswith(("ONEDNN_", "DNNL_"))]
