"""Promises 1 and 4 with whole runs: whatever is killed or full, no record is lost or torn, no process left behind.

Few kills here; SQUEEZE_TEST_KILLS=200 makes them many.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from squeeze.core.errors import PENDING, SqueezeError
from squeeze.core.files import write_atomically
from squeeze.records import store
from squeeze.records.record import Status
from tests.faults.sweeps import (
    JOBS,
    PROTOCOL,
    cell,
    jobs,
    ours,
    records,
    resume,
    run_made_up,
    start_in_the_background,
    wait_until,
)

KILLS = int(os.environ.get("SQUEEZE_TEST_KILLS", "4"))
ACKNOWLEDGED = re.compile(r"^\[\d+/\d+\] tiny-(\w+)-4(?:-r\d)?: ok$", re.MULTILINE)


@pytest.mark.promise(1)
def test_killed_runners_lose_nothing_and_leave_nothing(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Each runner finds more cells to do than it has time for; every cell is a block, and its record soon there.

    A kill comes at any time up to a quarter after the first record: some runners have acknowledged one, some are
    about to.
    """
    rng, results = random.Random(0), tmp_path / "results"
    first = seconds_of_one(tmp_path / "once")
    kills, cells = 0, [cell("t0")]
    while kills < KILLS:
        wanted = range(len(records(results)) + 8)
        cells = [cell(f"t{number}", replicate=number % 3, protocol={**PROTOCOL, "block": 1}) for number in wanted]
        runner = start_in_the_background(cells, results)
        try:
            runner.wait(rng.uniform(0.2, 1.25 * first))
        except subprocess.TimeoutExpired:
            runner.kill()
            runner.wait()
            kills += 1
        assert wait_until(lambda: not ours(os.environ[JOBS]), 5)
        assert acknowledged(tmp_path) <= set(records(results))
    count = len(acknowledged(tmp_path))
    assert count >= KILLS // 20
    assert all(record.status is Status.OK for record in run_made_up(cells, results).values())
    assert len(list((results / "records").glob("*.json"))) == len(cells)
    figure(f"{kills} SIGKILLs of runners: {count} records acknowledged, 0 lost, 0 unreadable, no process left behind")


@pytest.mark.promise(1)
def test_killed_workers_and_jobs_cost_no_cell(tmp_path: Path, figure: Callable[[str], None]) -> None:
    rng, results = random.Random(0), tmp_path / "results"
    kills, names = 0, list[str]()
    while kills < KILLS:
        cells = [cell(f"t{len(names) + number}") for number in range(8)]
        names += [each.technique["name"] for each in cells]
        runner = start_in_the_background(cells, results)
        while runner.poll() is None:
            time.sleep(rng.uniform(0.2, 0.8))
            kills += kill_one_below(runner.pid, rng)
        assert runner.returncode in (0, PENDING)
    pending = len(names) - len(records(results))
    assert resume(results) == 0
    found = records(results)
    assert set(found) == set(names)
    assert len(list((results / "records").glob("*.json"))) == len(names)
    assert {record.status for record in found.values()} == {Status.OK}
    assert not ours(os.environ[JOBS])
    figure(
        f"{kills} SIGKILLs of workers and jobs: {len(names)} cells, {pending} of them pending until `resume`, "
        f"{len(found)} records, none of a crash"
    )


def seconds_of_one(folder: Path) -> float:
    """How long a runner of one cell takes here."""
    folder.mkdir()
    started = time.monotonic()
    assert start_in_the_background([cell("once", protocol={**PROTOCOL, "block": 1})], folder / "results").wait() == 0
    return time.monotonic() - started


def acknowledged(folder: Path) -> set[str]:
    """The techniques whose record the runners so far have announced."""
    return set(ACKNOWLEDGED.findall((folder / "stderr").read_text()))


def kill_one_below(pid: int, rng: random.Random) -> bool:
    """Kill some descendant; whether there was one."""
    try:
        rng.choice(psutil.Process(pid).children(recursive=True)).kill()
    except (IndexError, psutil.NoSuchProcess):
        return False
    return True


@pytest.mark.promise(1)
@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_full_disk_ends_the_run_and_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """There is room for that many files: of samples, of a record, of samples, ..."""
    cells, written = [cell(f"t{number}") for number in range(4)], list[Path]()

    def write(path: Path, content: bytes) -> None:
        if len(written) == room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomically", write)
        with pytest.raises(SqueezeError, match=r"No space left.*`squeeze resume`"):
            run_made_up(cells, tmp_path / "results")
    kept = records(tmp_path / "results")
    assert len(kept) == room // 2
    found = run_made_up(cells, tmp_path / "results")
    assert len(found) == len(cells)
    assert {name: found[name] for name in kept} == kept


@pytest.mark.promise(4)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_signal_to_the_runner_leaves_a_process_behind(tmp_path: Path, number: int) -> None:
    """The job is deaf to SIGTERM, and so are its children."""
    runner = start_in_the_background([cell("hang@build")], tmp_path / "results")
    assert wait_until(lambda: jobs()["build"] == 1, 60)
    time.sleep(0.5)
    runner.send_signal(number)
    runner.wait(10)
    assert wait_until(lambda: not ours(os.environ[JOBS]), 5)
