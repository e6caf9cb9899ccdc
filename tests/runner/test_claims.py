"""Runs into one folder share its cells: none is measured twice, none is forgotten."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from squeeze.core import environment
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.claims import FOLDER, Claims, names
from squeeze.runner.jobs.display import Display
from squeeze.runner.plan import row_of
from tests.fabricated import record
from tests.faults.sweeps import PROTOCOL, cell

PLACE = environment.describe()
pytestmark = pytest.mark.promise(17)


def alone(name: str) -> Cell:
    """A cell that is a block of its own."""
    return cell(name, protocol={**PROTOCOL, "block": 1})


CELLS = [alone(name) for name in "abc"]


def claims(results: Path) -> Claims:
    store = RecordStore(results)
    store.prepare()
    return Claims(store, PLACE, Display({}, {}, Console(file=io.StringIO())), names(store.folder))


def write(results: Path, measured: Cell) -> None:
    RecordStore(results).write(record(measured, **row_of(measured, PLACE)._asdict(), attempt=measured.key[:8]))


def work(results: Path, cells: Sequence[Cell], done: list[str], own: Claims | None = None) -> None:
    """A run of its own, in this process: each lock has a file description of its own."""
    with own or claims(results) as mine:
        for block in mine.blocks(cells):
            for each in block:
                write(results, each)
                done.append(each.technique["name"])


def test_what_another_run_holds_comes_last_and_is_passed_over_once_it_has_its_record(tmp_path: Path) -> None:
    done: list[str] = []
    with claims(tmp_path) as first:
        held = next(iter(first.blocks(CELLS)))
        assert held == [CELLS[0]]
        second = threading.Thread(target=work, args=(tmp_path, CELLS, done))
        second.start()
        second.join(2)
        assert done == ["b", "c"]
        assert second.is_alive()  # it waits for the first
        write(tmp_path, CELLS[0])
    second.join(30)
    assert done == ["b", "c"]
    assert not second.is_alive()


def test_what_another_run_lets_go_of_without_a_record_is_measured_after_all(tmp_path: Path) -> None:
    done: list[str] = []
    with claims(tmp_path) as first:
        next(iter(first.blocks(CELLS)))
        second = threading.Thread(target=work, args=(tmp_path, CELLS, done))
        second.start()
        second.join(2)
    second.join(30)
    assert done == ["b", "c", "a"]


def test_many_runs_at_once_measure_each_cell_once(tmp_path: Path) -> None:
    cells = [alone(f"t{number}") for number in range(20)]
    done: list[str] = []
    begun = [claims(tmp_path) for _ in range(4)]  # before any record: none of them takes one for an old one
    runs = [threading.Thread(target=work, args=(tmp_path, cells, done, own)) for own in begun]
    for each in runs:
        each.start()
    for each in runs:
        each.join(60)
    assert sorted(done) == sorted(each.technique["name"] for each in cells)
    assert not list((tmp_path / FOLDER).iterdir())


def test_records_of_before_are_no_reason_to_pass_a_cell_over(tmp_path: Path) -> None:
    """Whoever asks for all anew has looked at them already."""
    write(tmp_path, CELLS[0])
    with claims(tmp_path) as mine:
        assert list(mine.blocks(CELLS)) == [[each] for each in CELLS]


def test_other_cells_of_a_block_are_not_held_up(tmp_path: Path) -> None:
    together = [cell(name) for name in "abcd"]
    with claims(tmp_path) as first, claims(tmp_path) as second:
        next(iter(first.blocks(together[1:2])))
        assert next(iter(second.blocks(together))) == [together[0], *together[2:]]
