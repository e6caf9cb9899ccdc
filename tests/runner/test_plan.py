"""What a run was asked for, and what it has to do: exactly what no record answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.boards.table import table
from squeeze.cli import main
from squeeze.core import environment
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell
from squeeze.request.expand import cells
from squeeze.runner import plan
from squeeze.runner.plan import Plan, answers, pending, row_of, statuses, uncontrolled, unfinished
from tests.fabricated import record
from tests.faults.sweeps import cell

CELLS = [Cell(model={"name": "m"}, technique={"name": "t", "steps": [{"bits": bits}]}) for bits in (8, 4)]
PLACE = environment.describe()
FAILURES = [status for status in Status if status is not Status.OK]
EARLIER, LATER = {"finished": "2026-01-01T00:01:00+00:00"}, {"finished": "2026-01-01T00:02:00+00:00"}
TINY = ("model=tiny_llama", "protocol=smoke", "training_steps=2")


def answer(subject: Cell, **changes: object) -> Record:
    """An ok record of the cell, made here and now."""
    return record(subject, **{**row_of(subject, PLACE)._asdict(), **changes})


def todo(wanted: list[Cell], records: list[Record], *, retry: bool = False) -> list[Cell]:
    return pending(wanted, records, PLACE, retry=retry)


def test_the_plans_of_all_runs_come_back_as_they_were(tmp_path: Path) -> None:
    results = tmp_path / "new" / "results"
    paths = [plan.save(wanted, results) for wanted in (CELLS, CELLS[:1])]
    assert len(set(paths)) == 2
    assert sorted(len(each.cells) for each in plan.load(results)) == [1, 2]
    assert all(list(each.cells) == CELLS[: len(each.cells)] for each in plan.load(results))


def test_a_plan_of_an_earlier_version_comes_first(tmp_path: Path) -> None:
    (tmp_path / plan.FORMER).write_text(json.dumps([CELLS[1].to_json()]))
    plan.save(CELLS[:1], tmp_path)
    assert [each for one in plan.load(tmp_path) for each in one.cells] == [CELLS[1], CELLS[0]]


def test_a_damaged_plan_does_not_harm_the_others(tmp_path: Path) -> None:
    told: list[Path] = []
    damaged, _ = (plan.save(CELLS, tmp_path) for _ in range(2))
    damaged.write_bytes(damaged.read_bytes()[:-10])
    assert len(plan.load(tmp_path, lambda path, _: told.append(path))) == 1
    assert told == [damaged]


@pytest.mark.promise(17)
def test_unfinished_is_what_has_no_record_since_it_was_asked_for() -> None:
    one, other = cell("a"), cell("b")
    early, late = Plan([one], "2026-01-01T00:01:30+00:00"), Plan([one, other], "2026-01-01T00:03:00+00:00")
    measured = answer(one, **LATER)
    assert unfinished([early], [], retry=False) == [one]
    assert unfinished([early], [answer(one, **EARLIER)], retry=False) == [one]
    assert unfinished([early], [measured], retry=False) == []
    assert unfinished([early], [replace(measured, artifact_key="0" * 64)], retry=False) == []  # of another version
    assert unfinished([early], [replace(measured, isolation="shared")], retry=False) == [one]
    assert unfinished([early, late], [measured], retry=False) == [one, other]
    assert unfinished([Plan([one, other])], [measured], retry=False) == [other]


@pytest.mark.parametrize("status", FAILURES)
def test_a_failure_is_finished_unless_retried(status: Status) -> None:
    failed = answer(cell(), status=status, **EARLIER)
    assert unfinished([Plan([cell()])], [failed], retry=False) == []
    assert unfinished([Plan([cell()])], [failed], retry=True) == [cell()]
    assert unfinished([Plan([cell()])], [answer(cell(), **LATER), failed], retry=True) == []


def test_without_a_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(SqueezeError, match="nothing to resume; start with `squeeze run`"):
        plan.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[{", b"[1]", b"3", b'[{"colour": 1}]', b"\xff", b"[" * 100_000])
def test_a_damaged_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / plan.FORMER).write_bytes(content)
    with pytest.raises(IntegrityError, match="is no plan of cells"):
        plan.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SqueezeError, match=r"cannot be written: .*; choose another --results"):
        plan.save(CELLS, tmp_path / "file" / "results")


def test_an_answered_cell_is_not_measured_again() -> None:
    one, other = cell("a"), cell("b")
    assert todo([one, other], [answer(one)]) == [other]


@pytest.mark.parametrize("field", ["key", "artifact_key", "fingerprint"])
def test_all_three_identities_must_match(field: str) -> None:
    assert todo([cell()], [answer(cell(), **{field: "0" * 64})]) == [cell()]
    assert statuses([cell()], [answer(cell(), **{field: "0" * 64})]) == {}


def test_measurements_that_shared_a_process_are_no_answer() -> None:
    assert todo([cell()], [answer(cell(), isolation="shared")]) == [cell()]
    assert statuses([cell()], [answer(cell(), isolation="shared")]) == {}


@pytest.mark.parametrize("status", FAILURES)
def test_failures_are_answers_unless_retried(status: Status) -> None:
    failed = answer(cell(), status=status, **EARLIER)
    assert todo([cell()], [failed]) == []
    assert todo([cell()], [failed], retry=True) == [cell()]
    assert todo([cell()], [failed, answer(cell(), **LATER)], retry=True) == []


@pytest.mark.parametrize("status", FAILURES)
@pytest.mark.parametrize("turned", [False, True], ids=["in order of time", "against it"])
def test_run_list_and_board_agree_on_which_attempt_counts(status: Status, turned: bool) -> None:
    """A failure that came after an ok attempt is what a board shows: listed so, and measured anew with --retry."""
    attempts = [answer(cell(), attempt="a", **EARLIER), answer(cell(), status=status, attempt="b", **LATER)]
    attempts = attempts[::-1] if turned else attempts
    [counts] = answers(attempts).values()
    assert counts.status is status
    assert statuses([cell()], attempts) == {cell().key: status}
    assert todo([cell()], attempts, retry=True) == [cell()]
    assert table(attempts)["status"].tolist() == [status]


def test_equal_cells_are_one() -> None:
    assert todo([cell(), cell()], []) == [cell()]


def test_ten_thousand_cells_are_checked_in_time() -> None:
    many = [cell("a", replicate=number) for number in range(10_000)]

    def records() -> Iterator[Record]:
        yield from (answer(each) for each in many[::100])

    start = time.process_time()
    assert len(pending(many, records(), PLACE, retry=False)) == 9_900
    assert time.process_time() - start < 5


def test_a_control_is_one_that_is_requested_or_measured() -> None:
    row, control, plain = cells([*TINY, "technique=qat,finetune,rtn"])
    [longer] = cells([*TINY[:2], "technique=finetune", "training_steps=3"])
    measured = record(control)
    assert uncontrolled([row, control, plain], []) == []
    assert uncontrolled([row, plain], []) == [row]
    assert uncontrolled([row, plain], [measured]) == []
    assert uncontrolled([row], [record(longer), record(row), replace(measured, status=Status.CRASHED)]) == [row]


def test_records_are_read_for_a_control_only_where_they_can_help() -> None:
    def unread() -> list[Record]:
        raise AssertionError("read")
        yield

    assert uncontrolled(cells([*TINY, "technique=qat,finetune"]), unread()) == []  # type: ignore[arg-type]


def test_the_command_line_tells_how_to_add_a_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *TINY, "technique=qat", "bits=4,3", "--results", str(tmp_path)]) == 0
    assert "note: tiny_llama-qat-4-g64 and 1 more: trained, but without a control" in capsys.readouterr().err
    assert main(["list", *TINY, "technique=qat,finetune", "--results", str(tmp_path)]) == 0
    assert "note" not in capsys.readouterr().err
