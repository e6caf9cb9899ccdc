"""Rounds go on until the interval is narrow; members work side by side; a killed one is tried by itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from squeeze.records.record import Estimate, Status
from squeeze.records.store import RecordStore
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.runner.results import Artifact, Measured, Process
from squeeze.runner.rounds import companies, fits, settled
from squeeze.runner.timing import PILOT_ROUNDS, faster
from tests.faults.conftest import own_places  # noqa: F401 - a fixture
from tests.faults.sweeps import MODEL, PROTOCOL, cell, run_made_up
from tests.runner.test_run import PILOT, log

EXTENDED = {**PROTOCOL, "rounds": 6, "most_rounds": 10}


def timed() -> Counter[str]:
    """How many processes of each label were timed."""
    return Counter(label for stage, label, _, _ in log() if stage == "latency")


def test_rounds_are_added_in_pairs_to_whoever_is_not_settled(tmp_path: Path) -> None:
    found = run_made_up([cell("a", protocol=EXTENDED), cell("restless", protocol=EXTENDED)], tmp_path / "results")
    assert found["a"].realised["rounds_ended"] == "half-width within 5%"
    assert found["restless"].realised["rounds_ended"] == "most rounds"
    assert [found[name].estimates["decode_speedup"].n for name in ("a", "restless")] == [6, 10]
    assert timed() == {
        "tiny-none-bfloat16": PILOT + 10,
        "tiny-none-float32": PILOT,
        "tiny-a-4": 6,
        "tiny-restless-4": 10,
    }


@pytest.mark.parametrize(
    ("done", "low", "high", "why"),
    [
        (7, 0.99, 1.01, ""),  # the protocol's own rounds come first
        (8, 0.99, 1.01, "half-width within 5%"),
        (8, 1.0, 1.05**2, "half-width within 5%"),
        (8, 1.0, 1.11, ""),
        (8, None, None, ""),
        (12, 1.0, 1.5, "most rounds"),
        (10, 1.0, 1.5, ""),
    ],
)
def test_when_a_candidate_is_settled(done: int, low: float | None, high: float | None, why: str) -> None:
    assert settled(done, {"rounds": 8, "most_rounds": 12}, Estimate(1.0, low, high)) == why


def test_without_most_rounds_none_are_added() -> None:
    assert settled(8, {"rounds": 8}, Estimate(1.0, 0.5, 2.0)) == "most rounds"


def test_as_many_are_alive_as_memory_holds() -> None:
    """A fifth of the memory is left alone; the baseline, of 10, is in each group."""
    assert companies([10, 5, 5, 5, 5], 25) == [[1, 2], [3, 4]]
    assert companies([10, 5, 5, 5, 5], 1000) == [[1, 2, 3, 4]]
    assert companies([10, 5, 20, 5], 25) == [[1], [2], [3]]
    assert fits([10, 10], 25)
    assert not fits([10, 11], 25)


def test_groups_that_memory_makes_have_a_baseline_process_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for the baseline and one candidate: 1 GiB for each and their weights, of 2.6 in all."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(int(2.6 * 2**30)))
    found = run_made_up([cell("a"), cell("b")], tmp_path / "results")
    assert {record.realised["timing"] for record in found.values()} == {"interleaved"}
    assert timed()["tiny-none-bfloat16"] == PILOT + 2 * PROTOCOL["rounds"]


def test_where_memory_does_not_hold_two_they_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(2**30))
    record = run_made_up([cell("a")], tmp_path / "results")["a"]
    assert record.realised["timing"] == "sequential"
    assert record.status is Status.OK


class Memory:
    """What psutil says of the memory."""

    def __init__(self, available: int):
        self.available, self.total = available, 4 * available


def test_side_by_side_is_said_and_kept(tmp_path: Path) -> None:
    record = run_made_up([cell("a")], tmp_path / "results")["a"]
    assert record.realised["timing"] == "interleaved"
    assert RecordStore(tmp_path / "results").samples(record).exists()


@pytest.mark.parametrize("fault", ["kill_neighbour", "kill_worker"])
def test_one_that_is_killed_beside_others_is_tried_by_itself(tmp_path: Path, fault: str) -> None:
    found = run_made_up([cell("a"), cell(f"{fault}@latency")], tmp_path / "results")
    assert found["a"].status is Status.OK
    guilty = found.get(f"{fault}@latency")
    assert guilty is None if fault == "kill_worker" else guilty is not None and guilty.status is Status.OK


@dataclass
class Shop:
    """Has timed the first member well, each time; the second failed."""

    folder_: Path
    failure: Failure

    def folder(self) -> Path:
        return self.folder_

    def measure_side_by_side(self, jobs: list[tuple[Job, Path]], _: str) -> list[Process | StageError]:
        return [Process({}, 1.0) if job.cell.label == "tiny-a-4" else StageError(self.failure) for job, _ in jobs]


def test_a_rival_that_fails_is_the_slower_one_but_not_one_that_was_killed(tmp_path: Path) -> None:
    members = [
        Measured(cell(name), tmp_path, Artifact(tmp_path, "", {"dtype": "bfloat16", "parameters": 1})) for name in "ab"
    ]
    crashed = cast(Executor, Shop(tmp_path, Failure(Status.CRASHED, "crashed", "latency")))
    assert faster(crashed, members) == (members[0], True)
    with pytest.raises(StageError, match="killed"):
        faster(cast(Executor, Shop(tmp_path, Failure(None, "killed", "latency"))), members)


@pytest.mark.parametrize(("name", "kept"), [("tiny", True), ("even", False)])
def test_a_speed_baseline_is_kept_only_where_a_test_shows_that_it_is_faster(
    tmp_path: Path, name: str, kept: bool
) -> None:
    """The made-up dtypes of the model called even are equally fast."""
    model: dict[str, Any] = {**MODEL, "name": name}
    run_made_up([cell("a", model=model)], tmp_path / "results")
    first = timed()
    run_made_up([cell("b", model=model)], tmp_path / "results")
    again = (timed() - first)[f"{name}-none-float32"]
    assert again == (0 if kept else PILOT_ROUNDS)
