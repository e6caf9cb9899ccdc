"""The members of a group work one at a time, there and back again; what befalls one leaves the others alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from squeeze.probes import samples
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.launcher import Launcher, Task
from squeeze.runner.jobs.limits import Limits
from squeeze.runner.jobs.outcome import Exit
from tests.faults.sweeps import cell
from tests.faults.worker import TURNS

KINDS = 2  # of timed calls, each with as many turns


def together(launcher: Launcher, folder: Path, *techniques: str, seconds: float = 30) -> list[Exit]:
    """How the processes of a group ended, one for each technique; each has an output folder of its name."""
    tasks = []
    for name in techniques:
        out = folder / name
        out.mkdir()
        job = Job(cell(name), out / "artifact", "latency", out)
        (out / "job.json").write_text(json.dumps(job.to_json()))
        tasks.append(Task(out / "job.json", out / "log", Limits(seconds, 2**30)))
    return launcher.run(tasks)


def turns(folder: Path) -> str:
    """Who had a turn, in order, by the technique's first letter."""
    lines = (folder / "jobs.turns").read_text().splitlines()
    return "".join(line.removeprefix("tiny-")[0] for line in lines)


def test_turns_go_there_and_back_again(launcher: Launcher, tmp_path: Path) -> None:
    """The first turn is the start of each process, and is not noted: so the notes begin with the way back."""
    ends = together(launcher, tmp_path, "a", "b", "c")
    assert [end.code for end in ends] == [0, 0, 0]
    assert turns(tmp_path) == "cbaabc" * (KINDS * TURNS // 2)
    assert all(samples.read(tmp_path / name).values["interleaved"] for name in "abc")


def test_a_process_by_itself_has_no_turns_to_wait_for(launcher: Launcher, tmp_path: Path) -> None:
    [end] = together(launcher, tmp_path, "a")
    assert end.code == 0
    assert samples.read(tmp_path / "a").values["interleaved"] is False


def test_waiting_for_a_turn_uses_up_no_seconds(launcher: Launcher, tmp_path: Path) -> None:
    """Three nap for 1.2 s of the 3 that each has; together they take longer than that."""
    ends = together(launcher, tmp_path, "nap@latency", "nap@latency-2", "nap@latency-3", "b", seconds=3)
    assert [end.breach for end in ends] == [""] * 4
    assert ends[0].seconds > 1.2
    assert ends[3].seconds < ends[0].seconds


@pytest.mark.promise(4)
@pytest.mark.parametrize(
    ("fault", "code", "breach"),
    [
        ("hang", -signal.SIGKILL, "seconds"),
        ("segfault", -signal.SIGSEGV, ""),
        ("exit", 3, ""),
        ("leave_children", 0, ""),
    ],
)
def test_what_befalls_one_leaves_the_others_alone(
    launcher: Launcher, tmp_path: Path, fault: str, code: int, breach: str
) -> None:
    first, middle, last = together(launcher, tmp_path, "a", f"{fault}@latency", "z", seconds=2.5)
    assert (middle.code, middle.breach) == (code, breach)
    assert [(end.code, end.breach) for end in (first, last)] == [(0, "")] * 2
    assert turns(tmp_path).count("a") == turns(tmp_path).count("z") == KINDS * TURNS


@pytest.mark.promise(4)
def test_one_that_is_killed_while_it_waits_is_passed_over(launcher: Launcher, tmp_path: Path) -> None:
    killed, killer = together(launcher, tmp_path, "a", "kill_neighbour@latency")
    assert (killed.code, killer.code) == (-signal.SIGKILL, 0)
    assert turns(tmp_path) == "k" * KINDS * TURNS


def test_a_worker_that_dies_takes_the_whole_group_along(launcher: Launcher, tmp_path: Path) -> None:
    ends = together(launcher, tmp_path, "a", "kill_worker@latency")
    assert [end.code for end in ends] == [-signal.SIGKILL] * 2
    assert together(launcher, tmp_path, "b")[0].code == 0
