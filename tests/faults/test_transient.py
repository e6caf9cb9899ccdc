"""Promise 17: a fault of the environment is no verdict on a cell: it stays pending until `squeeze resume` measures it.

The table of verdicts is in test_statuses.py. SQUEEZE_TEST_KILLS makes the kills many.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from squeeze.core.errors import PENDING, TransientError
from squeeze.records.record import Status
from squeeze.request.cell import Cell
from squeeze.runner import plan
from squeeze.runner.jobs import executor, launcher
from squeeze.runner.run import run
from tests.faults.sweeps import (
    JOBS,
    MODEL,
    PROTOCOL,
    WORKER,
    cell,
    jobs,
    mend,
    ours,
    records,
    resume,
    run_made_up,
    settle_in,
    start_in_the_background,
    wait_until,
)
from tests.faults.test_kills import KILLS, kill_one_below

ROUNDS = PROTOCOL["rounds"]
BLOCK_OF_ONE = {**PROTOCOL, "block": 1}
STAGES = ("build", "quality", "latency")

pytestmark = pytest.mark.promise(17)


def alone(name: str) -> Cell:
    """A cell that is a block of its own."""
    return cell(name, protocol=BLOCK_OF_ONE)


def finishes(results: Path, *techniques: str) -> bool:
    """Whether resuming, once the fault is mended, leaves one ok record of each of these, and no other."""
    mend()
    code, found = resume(results), records(results)
    whole = len(list((results / "records").glob("*.json"))) == len(techniques)
    return code == 0 and whole and dict.fromkeys(techniques, Status.OK) == {n: r.status for n, r in found.items()}


@pytest.mark.parametrize(("fault", "stage"), [("full", "build"), *(("no_room", stage) for stage in STAGES)])
def test_a_full_disk_ends_the_run_without_a_verdict(tmp_path: Path, fault: str, stage: str) -> None:
    """With ``no_room`` the process that fails can leave neither a word nor a line in its log."""
    results, bad = tmp_path / "results", f"{fault}@{stage}"
    with pytest.raises(TransientError, match=r"^disk full: .*MB free.*`squeeze resume`") as caught:
        run_made_up([alone("good"), alone(bad), alone("later")], results)
    assert "\n" not in str(caught.value)
    assert set(records(results)) == {"good"}
    assert finishes(results, "good", bad, "later")


def test_full_scratch_ends_the_run_without_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, made = tmp_path / "results", list[str]()

    def mkdtemp(**options: object) -> str:
        if len(made) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(options["dir"]))
        made.append(tempfile.mkdtemp(**options))  # type: ignore[call-overload]
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(executor, "mkdtemp", mkdtemp)
        with pytest.raises(TransientError, match=r"disk full: .*TMPDIR"):
            run_made_up([cell("a")], results)
    assert not records(results)
    assert finishes(results, "a")


@pytest.mark.parametrize("stage", STAGES)
def test_a_cache_that_is_removed_ends_the_run_without_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The job for which it was removed fails, as it may, with an error that tells nothing of that."""
    results, bad = tmp_path / "results", f"remove_cache@{stage}"
    with pytest.raises(TransientError, match=r"was removed while a run was at work on it.*`squeeze resume`"):
        run_made_up([alone("good"), alone(bad)], results)
    assert set(records(results)) == {"good"}
    settle_in(tmp_path, monkeypatch)
    assert finishes(results, "good", bad)


def test_a_quality_that_is_removed_before_its_record_is_written_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"

    def measure(*_: object) -> None:
        shutil.rmtree(tmp_path / "cache" / "quality")

    with monkeypatch.context() as patch:
        patch.setattr(executor.Executor, "measure_machine", measure)
        with pytest.raises(TransientError, match=r"quality/.* was removed"):
            run_made_up([cell("a")], results)
    assert not records(results)
    assert finishes(results, "a")


@pytest.mark.parametrize(
    ("fault", "stage"), [*(("kill", stage) for stage in STAGES), ("terminate", "build"), ("kill_worker", "quality")]
)
def test_a_kill_from_outside_is_tried_again_and_then_leaves_the_cell_pending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, stage: str
) -> None:
    results, bad = tmp_path / "results", f"{fault}@{stage}"
    assert run([cell("good"), cell(bad)], results, command=WORKER) == PENDING
    assert records(results).keys() == {"good"}
    attempts = Path(os.environ[JOBS]).read_text().count(f"{stage} tiny-{bad}-4 0 ")
    assert attempts == 2
    told = capsys.readouterr().err
    assert f"tiny-{bad}-4: pending: ended by SIG{'TERM' if fault == 'terminate' else 'KILL'} from outside" in told
    assert "1 of 2 cells are pending: `squeeze resume` measures them" in told
    assert finishes(results, "good", bad)


@pytest.mark.parametrize("stage", STAGES)
def test_one_kill_costs_nothing(tmp_path: Path, stage: str) -> None:
    bad = f"kill_once@{stage}"
    assert run([cell(bad)], tmp_path / "results", command=WORKER) == 0
    assert records(tmp_path / "results")[bad].status is Status.OK


@pytest.mark.parametrize("stage", STAGES)
def test_a_baseline_that_is_killed_is_no_verdict_on_its_candidates(tmp_path: Path, stage: str) -> None:
    model, results = {**MODEL, "name": f"kill@{stage}", "source": f"random:{stage}"}, tmp_path / "results"
    assert run([cell("a", model=model), cell("b", model=model)], results, command=WORKER) == PENDING
    assert not records(results)
    assert finishes(results, "a", "b")


def test_a_baseline_that_was_killed_is_tried_again_for_the_next_cell(tmp_path: Path) -> None:
    model, results = {**MODEL, "name": "kill_twice@quality"}, tmp_path / "results"
    assert run([cell("a", model=model), cell("b", model=model)], results, command=WORKER) == PENDING
    assert records(results)["b"].status is Status.OK
    assert finishes(results, "a", "b")


def test_no_network_leaves_the_cell_pending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = {**MODEL, "source": "hf:nobody/nothing", "revision": "0" * 40}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert run([cell("far", model=far), cell("near")], tmp_path / "results", command=WORKER) == PENDING
    assert set(records(tmp_path / "results")) == {"near"}
    assert "tiny-far-4: pending: hf:nobody/nothing: no network" in capsys.readouterr().err


def limited(stage: str, seconds: float) -> dict[str, object]:
    """The protocol with little time for one stage."""
    return {**PROTOCOL, "limits": {**PROTOCOL["limits"], stage: {"seconds": seconds, "bytes": 2**30}}}


@pytest.mark.parametrize("fault", ["stop", "stop_worker"])
def test_a_process_that_is_stopped_is_noticed_ended_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """A stopped job is ended at its limit by the worker, a stopped worker at its job's limit by the runner."""
    monkeypatch.setattr(launcher, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(launcher, "PATIENCE", 0.5)
    results, bad = tmp_path / "results", f"{fault}@quality"
    assert run([cell(bad, protocol=limited("quality", 3))], results, command=WORKER) == PENDING
    told = capsys.readouterr().err
    what = "worker" if fault == "stop_worker" else "job"
    assert f"the {what} (process " in told
    assert "was stopped from outside; `kill -CONT " in told
    assert f"tiny-{bad}-4: pending: {'ended by SIGKILL' if what == 'worker' else 'stopped'} from outside" in told
    assert not ours(os.environ[JOBS])
    assert finishes(results, bad)


def test_what_every_run_was_asked_for_is_finished(tmp_path: Path) -> None:
    """The second run's request does not make that of the first forgotten."""
    results = tmp_path / "results"
    for name in ("a", "b"):
        run([cell(f"kill@build-{name}")], results, command=WORKER)
    assert len(plan.load(results)) == 2
    assert finishes(results, "kill@build-a", "kill@build-b")
    before = jobs()
    assert resume(results) == 0
    assert jobs() == before


def test_two_equal_runs_at_once_measure_each_cell_once(tmp_path: Path, figure: Callable[[str], None]) -> None:
    cells, results = [alone(f"t{number}") for number in range(5)], tmp_path / "results"
    both = [start_in_the_background(cells, results) for _ in range(2)]
    assert [each.wait(120) for each in both] == [0, 0]
    assert len(list((results / "records").glob("*.json"))) == len(cells) == len(records(results))
    timed = [line for line in Path(os.environ[JOBS]).read_text().splitlines() if line.startswith("latency tiny-t")]
    assert len(timed) == len(cells) * ROUNDS
    figure(f"two equal runs started at once: {len(cells)} cells, {len(records(results))} records, none measured twice")


def test_a_run_that_dies_leaves_its_cells_to_the_one_that_waits(tmp_path: Path) -> None:
    cells, results = [alone("hang@quality"), alone("good")], tmp_path / "results"
    first = start_in_the_background(cells, results)
    assert wait_until(lambda: jobs()["quality"] == 2, 60)
    second = start_in_the_background([cells[0]], results)
    assert wait_until(lambda: "another run's at the moment" in (tmp_path / "stderr").read_text(), 60)
    mend()
    first.kill()
    assert second.wait(60) == 0
    assert set(records(results)) == {"hang@quality"}
    first.wait()


def test_kills_at_random_moments_leave_no_verdict_no_scratch_and_nothing_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    """Of runners, workers and jobs, with records present and every cell a block."""
    scratch, results, rng = tmp_path / "scratch", tmp_path / "results", random.Random(1)
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    run_made_up([alone(f"t{number}") for number in range(4)], results)
    kills, kept = 0, records(results)
    while kills < max(4, KILLS // 4):
        wanted = len(records(results)) + 4
        runner = start_in_the_background([alone(f"t{number}") for number in range(wanted)], results)
        for _ in range(3):
            try:
                runner.wait(rng.uniform(0.1, 1.0))
                break
            except subprocess.TimeoutExpired:
                kills += kill_one_below(runner.pid, rng)
        if runner.poll() is None and rng.random() < 0.5:
            runner.send_signal(signal.SIGKILL)
            kills += 1
        runner.wait(120)
        assert wait_until(lambda: not ours(os.environ[JOBS]), 5)
    assert resume(results) == 0
    found = records(results)
    asked = {each.technique["name"] for one in plan.load(results) for each in one.cells}  # some die before they ask
    assert set(found) == asked
    assert {record.status for record in found.values()} == {Status.OK}
    assert {name: found[name] for name in kept} == kept
    assert len(list((results / "records").glob("*.json"))) == len(asked)
    run([alone("one more")], results, command=WORKER)  # there may have been nothing to resume
    left = list(scratch.glob("squeeze-*"))
    assert not left
    figure(
        f"{kills} SIGKILLs of runners, workers and jobs in blocks of one: {len(asked)} cells, {len(found)} ok records "
        f"after `resume`, none of a crash, {len(left)} scratch folders left behind"
    )
