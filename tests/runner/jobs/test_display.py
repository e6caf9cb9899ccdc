"""What a person sees of a run while it works."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from squeeze.records.record import Record, Status
from squeeze.runner.jobs.display import Display, LastLine


def shown(log: Path, start: int) -> str:
    """All that a terminal is sent while a process writes to its log."""
    terminal = io.StringIO()
    with (
        Display(1, 2, Console(file=terminal, force_terminal=True, width=200)) as display,
        display.process("tiny-qat-3: build", LastLine(log, start)),
        log.open("a") as file,
    ):
        file.write("qat, 3 bits: step 1 of 64, loss 2.5000\nqat, 3 bits: [red]step 9\x1b[2J of 64, loss 1.2500\n\n")
        file.flush()
    return terminal.getvalue()


def test_a_training_shows_its_step_and_loss(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an earlier process, loss 9.0000\n")
    text = shown(log, log.stat().st_size)
    assert "tiny-qat-3: build" in text
    assert "qat, 3 bits: [red]step 9[2J of 64, loss 1.2500" in text  # words of a log steer no terminal
    assert "2.5000" not in text.rpartition("1.2500")[2]
    assert "earlier" not in text


def test_before_it_says_anything_and_in_a_long_log_there_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an earlier process\n")
    assert str(LastLine(log, log.stat().st_size)) == ""
    log.write_text("x" * 10_000 + "\nthe last\n")
    assert str(LastLine(log, 0)) == "the last"


def test_where_there_is_no_terminal_the_time_that_is_left_is_told() -> None:
    """Two cells of four steps; the first step took half a minute, then all steps of the first cell a whole one."""
    output, now = io.StringIO(), [0.0]
    with Display(2, 4, Console(file=output, width=200), clock=lambda: now[0]) as display:
        with display.process("tiny-rtn-4: build"):
            now[0] = 30.0
        display.step("a")
        with display.process("tiny-rtn-4: quality"):
            now[0] = 40.0
        display.finish("tiny-rtn-4", Record({}, "a", "", "", Status.OK, "", "", ""))
        with display.process("tiny-rtn-3: build"):
            now[0] = 60.0
        for _ in range(3):
            display.step("b")
        with display.process("tiny-rtn-3: latency"):
            now[0] = 61.0
    assert output.getvalue().splitlines() == [
        "tiny-rtn-4: build: 30.0 s",
        "tiny-rtn-4: quality: 10.0 s (12% done, about 5 min left)",
        "[1/2] tiny-rtn-4: ok",
        "tiny-rtn-3: build: 20.0 s (50% done, about 1 min left)",
        "tiny-rtn-3: latency: 1.0 s (88% done, less than a minute left)",
    ]
