"""Promise 4 and the worker's own duties: limits hold, nothing is left behind, no job outlives its runner."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.launcher import Launcher, Task
from squeeze.runner.jobs.limits import PATIENCE, Limits
from squeeze.runner.jobs.outcome import REPORT, Exit
from tests.faults.sweeps import JOBS, WORKER, cell, ours

ROOMY = Limits(seconds=60, bytes=2**30)


def start(launcher: Launcher, fault: str, tmp_path: Path, limits: Limits = ROOMY) -> tuple[Exit, Path]:
    out = tmp_path / f"out-{time.monotonic_ns()}"
    out.mkdir()
    job = Job(cell(f"{fault}@build"), out / "artifact", "build", out)
    (out / "job.json").write_text(json.dumps(job.to_json()))
    [end] = launcher.run([Task(out / "job.json", out / "log", limits)])
    return end, out


def test_a_job_that_ends_well(launcher: Launcher, tmp_path: Path) -> None:
    end, out = start(launcher, "good", tmp_path)
    assert (end.code, end.breach) == (0, "")
    assert (out / "artifact" / "build.json").exists()
    assert 0 < end.seconds < 10


def test_an_exception_leaves_word_and_a_log(launcher: Launcher, tmp_path: Path) -> None:
    end, out = start(launcher, "raise", tmp_path)
    assert end.code == 1
    assert json.loads((out / REPORT).read_text())["error"] == "ValueError"
    assert "a weight went missing" in (out / "log").read_text()


@pytest.mark.parametrize(("fault", "code"), [("exit", 3), ("segfault", -signal.SIGSEGV), ("kill", -signal.SIGKILL)])
def test_the_exit_code_is_reported(launcher: Launcher, tmp_path: Path, fault: str, code: int) -> None:
    assert start(launcher, fault, tmp_path)[0].code == code
    assert start(launcher, "good", tmp_path)[0].code == 0  # and the worker goes on


@pytest.mark.promise(4)
def test_a_deaf_job_is_gone_within_five_seconds_of_its_limit(
    launcher: Launcher, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """It ignores SIGTERM and has two children that do, one of which has left its process group."""
    start(launcher, "good", tmp_path)
    began = time.monotonic()
    end, _ = start(launcher, "hang", tmp_path, Limits(seconds=1.5, bytes=2**30))
    after = time.monotonic() - began - 1.5
    assert end.breach == "seconds"
    assert 0 <= after < 5
    assert not [process for process in ours(os.environ[JOBS]) if "time.sleep(600)" in " ".join(process.cmdline())]
    figure(f"a job that ignores SIGTERM, with two children that do: all gone {after:.1f} s after its limit")


@pytest.mark.promise(4)
def test_memory_is_watched(launcher: Launcher, tmp_path: Path) -> None:
    end, _ = start(launcher, "hog", tmp_path, Limits(seconds=60, bytes=300 * 2**20))
    assert end.breach == "bytes" or end.code == 1  # the watch, or the resource limit at twice the bound
    assert end.bytes < 2 * 300 * 2**20 + 50 * 2**20


@pytest.mark.promise(4)
def test_what_a_job_leaves_running_is_ended(launcher: Launcher, tmp_path: Path) -> None:
    assert start(launcher, "leave_children", tmp_path)[0].code == 0
    assert not [process for process in ours(os.environ[JOBS]) if "time.sleep(600)" in " ".join(process.cmdline())]


def test_a_worker_that_dies_takes_its_job_along_and_is_replaced(launcher: Launcher, tmp_path: Path) -> None:
    end, _ = start(launcher, "kill_worker", tmp_path)
    assert end.code == -signal.SIGKILL
    assert start(launcher, "good", tmp_path)[0].code == 0


@pytest.mark.promise(4)
def test_closing_the_launcher_ends_a_running_job(launcher: Launcher, tmp_path: Path) -> None:
    interrupted = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            start(launcher, "hang", tmp_path)
    finally:
        signal.signal(signal.SIGALRM, interrupted)
    assert time.monotonic() - began < 1.5 + PATIENCE + 3
    assert not ours(os.environ[JOBS])


@pytest.mark.promise(10)
def test_waiting_costs_no_processor_time(launcher: Launcher, tmp_path: Path) -> None:
    """Promise 10 in small: a parent that waits busily would slow its child."""
    start(launcher, "good", tmp_path)
    assert launcher._worker is not None
    worker = psutil.Process(launcher._worker.pid)
    before = sum(os.times()[:2]), sum(worker.cpu_times()[:2])
    start(launcher, "sleep", tmp_path)
    after = sum(os.times()[:2]), sum(worker.cpu_times()[:2])
    assert after[0] - before[0] < 0.1
    assert after[1] - before[1] < 0.2


def test_a_forked_job_starts_in_milliseconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOBS, str(tmp_path / "jobs"))
    with Launcher(tmp_path / "worker.log", command=(*WORKER, "--fork")) as launcher:
        start(launcher, "good", tmp_path)
        assert min(start(launcher, "good", tmp_path)[0].seconds for _ in range(5)) < 0.5
