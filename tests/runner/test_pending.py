"""What a run has to do: exactly what no record answers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from squeeze.artifacts.keys import artifact_key
from squeeze.core import environment
from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell
from squeeze.runner.pending import pending
from tests.fabricated import record
from tests.faults.sweeps import cell

PLACE = environment.describe()


def answer(subject: Cell, **changes: object) -> Record:
    """An ok record of the cell, made here and now."""
    identity = {"artifact_key": artifact_key(subject), "fingerprint": environment.fingerprint(PLACE, subject)}
    return record(subject, **{**identity, **changes})


def todo(cells: list[Cell], records: list[Record], *, retry: bool = False) -> list[Cell]:
    return pending(cells, records, PLACE, retry=retry)


def test_an_answered_cell_is_not_measured_again() -> None:
    one, other = cell("a"), cell("b")
    assert todo([one, other], [answer(one)]) == [other]


@pytest.mark.parametrize("field", ["key", "artifact_key", "fingerprint"])
def test_all_three_identities_must_match(field: str) -> None:
    assert todo([cell()], [answer(cell(), **{field: "0" * 64})]) == [cell()]


def test_measurements_that_shared_a_process_are_no_answer() -> None:
    assert todo([cell()], [answer(cell(), isolation="shared")]) == [cell()]


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_failures_are_answers_unless_retried(status: Status) -> None:
    failed = answer(cell(), status=status)
    assert todo([cell()], [failed]) == []
    assert todo([cell()], [failed], retry=True) == [cell()]
    assert todo([cell()], [failed, answer(cell())], retry=True) == []


def test_equal_cells_are_one() -> None:
    assert todo([cell(), cell()], []) == [cell()]


def test_ten_thousand_cells_are_checked_in_time() -> None:
    cells = [cell("a", replicate=number) for number in range(10_000)]

    def records() -> Iterator[Record]:
        yield from (answer(each) for each in cells[::100])

    start = time.process_time()
    assert len(pending(cells, records(), PLACE, retry=False)) == 9_900
    assert time.process_time() - start < 5
