"""A job whose engine lies in an environment of its own is a process of that interpreter, and takes its turns."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.launcher import Launcher, Task
from squeeze.runner.jobs.limits import Limits
from tests.faults.sweeps import cell
from tests.foreign import named, offer, requirements, wheel

WORKER = """
import os, sys
from pathlib import Path
from squeeze.probes.turns import Turns
from squeeze.runner.jobs import worker
from squeeze.runner.jobs.job import Job

def perform(path, gate):
    job, turns = Job.read(path), Turns(gate)
    (job.out / "prefix").write_text(sys.prefix)
    try:
        import toy_engine
    except ImportError:
        (job.out / "lacks").touch()
    for _ in range(3):
        turns.next()
        with Path(os.environ["TURNS"]).open("a") as file:
            file.write(f"{job.cell.technique['name']} ")
    return 0

if __name__ == "__main__":
    worker.main(perform, preloaded=("json",))
"""
LIMITS = Limits(seconds=60, bytes=2**30)


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of an environment which has what the core's has not."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("TURNS", str(tmp_path / "turns"))
    wheel(tmp_path / "index")
    offer(tmp_path / "site", monkeypatch, {"toy": requirements(tmp_path / "index")})
    return named("toy").made()


def task(folder: Path, name: str, interpreter: Path | None) -> Task:
    out = folder / name
    out.mkdir()
    (out / "job.json").write_text(json.dumps(Job(cell(name), out, "latency", out).to_json()))
    return Task(out / "job.json", out / "log", LIMITS, interpreter)


@pytest.mark.parametrize("fork", [True, False])
def test_processes_of_two_interpreters_take_turns(fork: bool, interpreter: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = (sys.executable, str(script), *(["--fork"] if fork else []))
    with Launcher(tmp_path / "log", command=command) as launcher:
        ends = launcher.run([task(tmp_path, "core", None), task(tmp_path, "toy", interpreter)])
    assert [end.code for end in ends] == [0, 0], [(tmp_path / name / "log").read_text() for name in ("core", "toy")]
    assert (tmp_path / "core" / "prefix").read_text() == sys.prefix
    assert Path((tmp_path / "toy" / "prefix").read_text()) == interpreter.parents[1]
    assert (tmp_path / "core" / "lacks").exists()
    assert not (tmp_path / "toy" / "lacks").exists()
    turns = (tmp_path / "turns").read_text().split()
    assert sorted(turns) == ["core"] * 3 + ["toy"] * 3
    assert turns == ["toy", "core", "core", "toy", "toy", "core"], "there and back again"
