"""What a run says before and after: what it will do, what came of it, what to type next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from squeeze.artifacts.keys import artifact_key
from squeeze.cli import main
from squeeze.core import environment
from squeeze.records.record import Estimate, Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell

ASKED = ["model=tiny_llama", "technique=none,rtn", "bits=8,4", "protocol=smoke"]


def made(cell: Cell, status: Status) -> Record:
    place = environment.describe()
    here = environment.fingerprint(place, cell.runtime)
    found = {"perplexity": Estimate(20.0), "bytes": Estimate(389_304)} if status is Status.OK else {}
    return Record(
        cell=cell.to_json(), key=cell.key, artifact_key=artifact_key(cell), fingerprint=here, status=status,
        attempt=cell.key[:32], started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:00:01+00:00",
        environment=place, estimates=found, stages={"build": 30.0}, stage="build",
        reason="" if found else "it did not work",
    )  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the runner: writes a record of the status that ``of(cell)`` gives, and ends with ``code``."""
    fake = SimpleNamespace(of=lambda _: Status.OK, code=0, runs=0)

    def run(wanted: Sequence[Cell], results: Path, **_: Any) -> int:
        fake.runs += 1
        store = RecordStore(results)
        store.prepare()
        for cell in wanted:
            store.write(made(cell, fake.of(cell)))
        return int(fake.code)

    monkeypatch.setitem(sys.modules, "squeeze.runner.run", SimpleNamespace(run=run))
    return fake


def squeeze(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_run_says_what_it_will_do_and_what_came_of_it(
    measured: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert squeeze("run", *ASKED, "--results", tmp_path) == 0
    shown = capsys.readouterr()
    first, *_, where, following = shown.err.splitlines()
    assert first.startswith("3 cells, about ")
    assert first.endswith(f" min, results in {tmp_path}")
    assert (
        where == f"results: leaderboard.csv, leaderboard.md and pareto.png in {tmp_path}, records in {tmp_path}/records"
    )
    assert following.startswith(f"next: squeeze show rtn-4-g64 --results {tmp_path}")
    assert "389 kB" in shown.out
    assert (tmp_path / "leaderboard.csv").is_file()
    assert squeeze("run", *ASKED, "--results", tmp_path) == 0
    assert capsys.readouterr().err.startswith(f"3 cells, all measured already, results in {tmp_path}\n")


def test_of_a_part_that_is_measured_the_rest_is_announced(
    measured: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squeeze("run", "model=tiny_llama", "technique=none", "protocol=smoke", "--results", tmp_path)
    capsys.readouterr()
    squeeze("run", *ASKED, "--results", tmp_path)
    assert capsys.readouterr().err.startswith("3 cells, 1 of them measured already, about ")


@pytest.mark.parametrize(("failing", "code"), [({"none", "rtn"}, 1), ({"rtn"}, 0), (set(), 0)])
def test_the_exit_code_is_1_when_every_cell_failed(
    measured: SimpleNamespace, tmp_path: Path, failing: set[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    measured.of = lambda cell: Status.CRASHED if cell.technique["name"] in failing else Status.OK
    assert squeeze("run", *ASKED, "--results", tmp_path) == code
    shown = capsys.readouterr()
    assert ("rtn-4-g64: crashed: it did not work" in shown.out) is ("rtn" in failing)
    assert ("why it failed" in shown.err) is bool(code)


def test_an_interrupted_run_makes_no_boards(measured: SimpleNamespace, tmp_path: Path) -> None:
    measured.code = 130
    assert squeeze("run", *ASKED, "--results", tmp_path) == 130
    assert not (tmp_path / "leaderboard.csv").exists()


def test_cells_that_are_left_pending_come_next(
    measured: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured.code = 75
    assert squeeze("run", *ASKED, "--results", tmp_path) == 75
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"next: squeeze resume --results {tmp_path}")


def test_boards_that_cannot_be_made_hide_nothing(
    measured: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("squeeze.boards.leaderboard.collate", broken)
    assert squeeze("run", *ASKED, "--results", tmp_path) == 0
    assert "note: no leaderboards (of all things); the records are kept" in capsys.readouterr().err
    assert len(list((tmp_path / "records").glob("*.json"))) == 3


def test_a_bare_run_says_what_to_type_where_nobody_can_be_asked(
    measured: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert squeeze("run", "--results", tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("1 cell, about ")
    assert "type `squeeze run --yes` for smollm2_135m-none-bfloat16 (protocol standard)" in said
    assert "squeeze run model=tiny technique=none,rtn" in said
    assert measured.runs == 0
    assert squeeze("run", "--yes", "--results", tmp_path) == 0
    assert measured.runs == 1


@pytest.mark.parametrize(("answer", "runs"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_a_bare_run_asks_on_a_terminal(
    measured: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, runs: int
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.confirm", lambda *_, **__: answer.startswith("y"))
    assert squeeze("run", "--results", tmp_path) == 0
    assert measured.runs == runs
