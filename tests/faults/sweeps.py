"""Made-up cells, and runs of them with the worker that computes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from squeeze.core.cache import sealed
from squeeze.core.interpreters import environment_with
from squeeze.records.record import Record
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner import plan
from squeeze.runner.run import run
from squeeze.sources.corpora import corpus_hash

WORKER = (sys.executable, str(Path(__file__).with_name("worker.py")))
JOBS = "SQUEEZE_TEST_JOBS"
RUNNER = """
import json, sys
from squeeze.core.errors import PENDING, TransientError
from tests.faults.sweeps import *
cells = [Cell.from_json(data) for data in json.loads(sys.stdin.read())]
try:
    sys.exit(run(cells, Path(sys.argv[1]), command=WORKER))
except TransientError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(PENDING)
"""

MODEL = {"name": "tiny", "source": "random:llama", "seed": 0, "kind": "causal_lm", "dtype": "bfloat16"}
RUNTIME = {"name": "eager", "device": "cpu", "threads": 1, "_target_": "eager.Eager"}
LIMIT = {"seconds": 60, "bytes": 2**30}
PROTOCOL: dict[str, Any] = {
    "name": "made_up",
    "rounds": 2,
    "block": 4,
    "seed": 0,
    "latency": {
        "prompt_tokens": 8,
        "decode_tokens": 8,
        "prefill_repeats": 5,
        "batch_sizes": [1],
        "warmup_rounds": 1,
        "turn_tokens": 2,
    },
    "perplexity": {"corpus": "wikipedia_eval", "tokens": 4096, "window": 512, "stride": 512},
    "tasks": [],
    "items": 100,
    "token_budget": 1024,
    "ranked_by": "perplexity",
    "limits": {"build": LIMIT, "quality": LIMIT, "latency": LIMIT},
}


def settle_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let runs have their cache and their list of jobs below ``folder``; the text that they need is there already."""
    patch.setenv("SQUEEZE_CACHE", str(folder / "cache"))
    patch.setenv(JOBS, str(folder / "jobs"))

    def write(corpus: Path) -> None:
        (corpus / "text.txt").write_text("A text.\n")

    name = PROTOCOL["perplexity"]["corpus"]
    sealed(f"corpora/{name}-{corpus_hash(name)[:16]}", write)


def cell(technique: str = "good", **changes: Any) -> Cell:
    """A cell whose processes do what the technique's name says; each name is another artifact."""
    step = {"_target_": "rtn.RoundToNearest", "bits": 4, "label": technique}
    parts = {"model": MODEL, "runtime": RUNTIME, "protocol": PROTOCOL, **changes}
    return Cell(technique={"name": technique, "family": "made_up", "steps": [step]}, **parts)


def limited(seconds: float = 60, size: int = 2**30) -> dict[str, Any]:
    """The protocol with other limits."""
    limit = {"seconds": seconds, "bytes": size}
    return {**PROTOCOL, "limits": {"build": limit, "quality": limit, "latency": limit}}


def run_made_up(cells: Sequence[Cell], results: Path, **options: Any) -> dict[str, Record]:
    """Run the cells; their records by the technique's name (the last of several attempts)."""
    run(cells, results, command=WORKER, **options)
    return records(results)


def resume(results: Path, *, retry: bool = False) -> int:
    """What ``squeeze resume`` does; its exit code."""
    left = plan.unfinished(plan.load(results), RecordStore(results).records(), retry=retry)
    return run(left, results, resume=False, retry=retry, command=WORKER) if left else 0


def mend() -> None:
    """Let the faults that techniques are named for happen no more."""
    Path(os.environ[JOBS]).with_name("mended").touch()


def records(results: Path) -> dict[str, Record]:
    """All records, by technique. Fails on an unreadable one."""

    def unreadable(path: Path, why: str) -> None:
        raise AssertionError(f"{path.name}: {why}")

    found = sorted(RecordStore(results).records(unreadable), key=lambda record: record.finished)
    return {record.cell["technique"]["name"]: record for record in found}


def jobs() -> Counter[str]:
    """How many jobs of each stage were begun so far."""
    path = Path(os.environ[JOBS])
    return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()


def start_in_the_background(cells: Sequence[Cell], results: Path) -> subprocess.Popen[bytes]:
    """A runner of its own, which can be killed; it ends as the command line does."""
    with (results.parent / "stderr").open("ab") as messages:
        runner = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(results)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env=environment_with({}),
            cwd=Path(__file__).parents[2],
        )
    assert runner.stdin is not None
    runner.stdin.write(json.dumps([cell.to_json() for cell in cells]).encode())
    runner.stdin.close()
    return runner


def wait_until(condition: Any, seconds: float = 20) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def ours(mark: str) -> list[psutil.Process]:
    """Processes that run with this value of SQUEEZE_TEST_JOBS: everything that a test has started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(JOBS) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]
