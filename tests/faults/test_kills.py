"""Promises 1 and 4 with whole runs: whatever is killed, no record is lost or torn and no process is left behind.

Few kills here; SQUEEZE_TEST_KILLS=200 makes them many.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from squeeze.record import Status
from tests.faults.sweeps import JOBS, cell, jobs, ours, records, run_made_up, start_in_the_background, wait_until

KILLS = int(os.environ.get("SQUEEZE_TEST_KILLS", "6"))
ACKNOWLEDGED = re.compile(r"^\[\d+/\d+\] tiny-(\w+)-4(?:-r\d)?: ok$", re.MULTILINE)


def test_killed_runners_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    cells = [cell(f"t{number}", replicate=number % 3) for number in range(KILLS)]
    results = tmp_path / "results"
    for _ in range(KILLS):
        runner = start_in_the_background(cells, results)
        try:
            runner.wait(rng.uniform(0.2, 3.0))
        except subprocess.TimeoutExpired:
            runner.kill()
            runner.wait()
        assert wait_until(lambda: not ours(os.environ[JOBS]), 5)
        assert set(ACKNOWLEDGED.findall((tmp_path / "stderr").read_text())) <= set(records(results))
    assert all(record.status is Status.OK for record in run_made_up(cells, results).values())
    assert len(list((results / "records").glob("*.json"))) == len(cells)


def test_killed_workers_and_jobs_cost_no_more_than_their_cell(tmp_path: Path) -> None:
    rng = random.Random(0)
    cells = [cell(f"t{number}") for number in range(8)]
    runner = start_in_the_background(cells, tmp_path / "results")
    killed = 0
    while runner.poll() is None:
        time.sleep(rng.uniform(0.3, 1.0))
        victims = [process for process in psutil.Process(runner.pid).children(recursive=True) if killed < KILLS]
        if victims:
            rng.choice(victims).kill()
            killed += 1
    assert runner.returncode == 0
    found = records(tmp_path / "results")
    assert set(found) == {each.technique["name"] for each in cells}
    for record in found.values():
        assert record.status is Status.OK or "SIGKILL" in record.reason or "baseline" in record.reason
    assert not ours(os.environ[JOBS])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_signal_to_the_runner_leaves_a_process_behind(tmp_path: Path, number: int) -> None:
    """The job is deaf to SIGTERM, and so are its children."""
    runner = start_in_the_background([cell("hang@build")], tmp_path / "results")
    assert wait_until(lambda: jobs()["build"] == 1, 60)
    time.sleep(0.5)
    runner.send_signal(number)
    runner.wait(10)
    assert wait_until(lambda: not ours(os.environ[JOBS]), 5)
