"""Requests that train something say so where they have no control."""

from __future__ import annotations

from dataclasses import replace

import pytest

from squeeze.cli import main
from squeeze.records.record import Record, Status
from squeeze.request.expand import cells
from squeeze.runner.uncontrolled import uncontrolled
from tests.fabricated import record

TINY = ("model=tiny_llama", "protocol=smoke", "training_steps=2")


def test_a_control_is_one_that_is_requested_or_measured() -> None:
    row, control, plain = cells([*TINY, "technique=qat,finetune,rtn"])
    [longer] = cells([*TINY[:2], "technique=finetune", "training_steps=3"])
    measured = record(control)
    assert uncontrolled([row, control, plain], []) == []
    assert uncontrolled([row, plain], []) == [row]
    assert uncontrolled([row, plain], [measured]) == []
    assert uncontrolled([row], [record(longer), record(row), replace(measured, status=Status.CRASHED)]) == [row]


def test_records_are_read_only_where_they_can_help() -> None:
    def unread() -> list[Record]:
        raise AssertionError("read")
        yield

    assert uncontrolled(cells([*TINY, "technique=qat,finetune"]), unread()) == []  # type: ignore[arg-type]


def test_the_command_line_tells_how_to_add_it(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *TINY, "technique=qat", "bits=4,3", "--results", str(tmp_path)]) == 0
    assert "note: tiny_llama-qat-4-g64 and 1 more: trained, but without a control" in capsys.readouterr().err
    assert main(["list", *TINY, "technique=qat,finetune", "--results", str(tmp_path)]) == 0
    assert "note" not in capsys.readouterr().err
