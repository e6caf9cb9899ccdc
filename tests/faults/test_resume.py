"""Promise 3: a resumed run does what is missing, and nothing else."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from squeeze.core import environment
from squeeze.records.record import Status
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.run import run
from tests.faults.sweeps import (
    MODEL,
    PROTOCOL,
    RUNTIME,
    WORKER,
    cell,
    jobs,
    records,
    run_made_up,
    start_in_the_background,
    wait_until,
)

ROUNDS = PROTOCOL["rounds"]

pytestmark = pytest.mark.promise(3)


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    cells = [cell("a"), cell("b")]
    first = run_made_up(cells, tmp_path / "results")
    before, start = jobs(), time.monotonic()
    assert run_made_up(cells, tmp_path / "results") == first
    assert jobs() == before
    assert time.monotonic() - start < 1


def test_only_what_is_missing_is_measured(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(6)]
    run_made_up([cell(name) for name in names[:4]], tmp_path / "results")
    before = jobs()
    run_made_up([cell(name) for name in names], tmp_path / "results")
    assert set(records(tmp_path / "results")) == set(names)
    done = jobs() - before
    assert (done["build"], done["quality"]) == (2, 2)
    assert done["latency"] == (2 + 1) * ROUNDS  # the two, and the baseline anew: a timing never leaves its block


def test_a_killed_run_loses_only_its_block(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Killed after the first block of four; the second runner measures the other five."""
    cells = [cell(f"t{number}") for number in range(9)]
    results = tmp_path / "results"
    runner = start_in_the_background(cells, results)
    assert wait_until(lambda: len(list((results / "records").glob("*.json"))) >= 4, 60)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    kept, before = records(results), jobs()
    found = run_made_up(cells, results)
    assert set(found) == {each.technique["name"] for each in cells}
    missing = len(cells) - len(kept)
    assert (jobs() - before)["latency"] == (missing + math.ceil(missing / PROTOCOL["block"])) * ROUNDS
    assert {name: found[name] for name in kept} == kept
    assert len(list((results / "records").glob("*.json"))) == len(cells)
    figure(f"killed after {len(kept)} of {len(cells)} cells: the resumed run timed the {missing} that were missing")


@pytest.mark.parametrize(("signal_number"), [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, signal_number: int) -> None:
    runner = start_in_the_background([cell("a"), cell("hang@latency")], tmp_path / "results")
    assert wait_until(lambda: jobs()["latency"] > 2, 60)
    runner.send_signal(signal_number)
    assert runner.wait(15) == 130
    assert "`squeeze resume` measures the rest" in (tmp_path / "stderr").read_text()


def test_a_failure_is_an_answer_unless_retried(tmp_path: Path) -> None:
    cells = [cell("good"), cell("raise@build")]
    run_made_up(cells, tmp_path / "results")
    before = jobs()
    run_made_up(cells, tmp_path / "results")
    assert jobs() == before
    assert run_made_up(cells, tmp_path / "results", retry=True)["raise@build"].status is Status.CRASHED
    assert jobs() - before == {"build": 1}


def test_without_resume_everything_is_timed_anew_but_nothing_is_built(tmp_path: Path) -> None:
    run_made_up([cell("a")], tmp_path / "results")
    before = jobs()
    run_made_up([cell("a")], tmp_path / "results", resume=False)
    assert jobs() - before == {"latency": 2 * ROUNDS, "machine": 1}
    assert len(list((tmp_path / "results" / "records").glob("*.json"))) == 2


def test_a_torn_record_is_measured_again_and_kept(tmp_path: Path) -> None:
    results = tmp_path / "results"
    run_made_up([cell("a")], results)
    (path,) = (results / "records").glob("*.json")
    path.write_bytes(path.read_bytes()[:-10])
    before = jobs()
    assert run([cell("a")], results, command=WORKER) == 0
    assert (jobs() - before)["latency"] == 2 * ROUNDS
    assert path.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {**MODEL, "seed": 1}},
        {"model": {**MODEL, "dtype": "float32"}},
        {"runtime": {**RUNTIME, "threads": 2}},
        {"protocol": {**PROTOCOL, "items": 99}},
        {"protocol": {**PROTOCOL, "seed": 1}},
        {"replicate": 1},
    ],
    ids=str,
)
def test_any_changed_field_is_another_cell(tmp_path: Path, changes: dict[str, Any]) -> None:
    run_made_up([cell("a")], tmp_path / "results")
    run_made_up([cell("a", **changes)], tmp_path / "results")
    assert len(list((tmp_path / "results" / "records").glob("*.json"))) == 2


def test_another_machine_is_measured_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_made_up([cell("a")], tmp_path / "results")
    hardware = {**environment.hardware(), "cpu_model": "another"}
    monkeypatch.setattr(environment, "hardware", lambda: hardware)
    run_made_up([cell("a")], tmp_path / "results")
    found = list(RecordStore(tmp_path / "results").records(lambda *_: None))
    assert len({record.fingerprint for record in found}) == 2


def test_order_and_labels_change_nothing(tmp_path: Path) -> None:
    run_made_up([cell("a")], tmp_path / "results")
    before = jobs()
    data = cell("a").to_json()
    shuffled = {name: dict(reversed(part.items())) if isinstance(part, dict) else part for name, part in data.items()}
    run_made_up([Cell.from_json(shuffled)], tmp_path / "results")
    assert jobs() == before


def test_equal_cells_are_measured_once(tmp_path: Path) -> None:
    run_made_up([cell("a"), cell("a")], tmp_path / "results")
    assert jobs()["build"] == 1 + 2  # the two baselines
