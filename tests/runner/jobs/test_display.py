"""What a person sees of a run while it works."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from squeeze.records.record import Record, Status
from squeeze.runner.jobs.display import Display, LastLine
from tests.faults.sweeps import cell

STEPS = {"build": 1, "quality": 1, "latency": 2}
CELLS = {name: cell(name) for name in "abc"}
KEYS = {name: one.key for name, one in CELLS.items()}
LABELS = {key: name for name, key in KEYS.items()}
ONE = {KEYS["a"]: "a"}


def record(status: Status) -> Record:
    return Record({}, "", "", "", status, "", "", "")


def shown(log: Path, start: int) -> str:
    """All that a terminal is sent while a process writes to its log."""
    terminal = io.StringIO()
    with (
        Display(ONE, STEPS, Console(file=terminal, force_terminal=True, width=200)) as display,
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
    """Scoring comes first and takes long; the rounds that follow are told by their own pace, not by that of scoring."""
    output, now = io.StringIO(), [0.0]

    def taken(display: Display, key: str, stage: str, seconds: float) -> None:
        with display.process(f"{key}: {stage}"):
            now[0] += seconds
        display.step(KEYS[key], stage)

    with Display(LABELS, STEPS, Console(file=output, width=200), clock=lambda: now[0]) as display:
        taken(display, "a", "build", 5.0)
        taken(display, "a", "quality", 100.0)
        taken(display, "a", "latency", 4.0)
        taken(display, "a", "latency", 4.0)
        display.finish(CELLS["a"], record(Status.OK))
        taken(display, "b", "build", 5.0)  # ahead: 1 build, 2 scorings, 4 rounds: 5 + 200 + 16 s
        display.finish(CELLS["b"], record(Status.CRASHED))  # takes its other steps along
        taken(display, "c", "build", 5.0)
        taken(display, "c", "quality", 40.0)
        taken(display, "c", "latency", 4.0)
    assert output.getvalue().splitlines() == [
        "a: build: 5.0 s (0 % done)",
        "a: quality: 100.0 s (8 % done)",
        "a: latency: 4.0 s (17 % done)",
        "a: latency: 4.0 s (25 % done, about 4 min left)",
        "[1/3] a: ok",
        "b: build: 5.0 s (33 % done, about 4 min left)",
        "[2/3] b: crashed",
        "c: build: 5.0 s (67 % done, about 2 min left)",
        "c: quality: 40.0 s (75 % done, about 2 min left)",
        "c: latency: 4.0 s (83 % done, less than a minute left)",
    ]


def test_steps_that_end_together_took_their_time_together() -> None:
    output, now = io.StringIO(), [0.0]
    steps = {"latency": 2}
    with Display(LABELS, steps, Console(file=output, width=200), clock=lambda: now[0]) as display:
        for _ in range(2):
            with display.process("3 models side by side"):
                now[0] += 300.0
            for key in "abc":
                display.step(KEYS[key], "latency")
        display.step(KEYS["a"], "latency")  # a round more than was foreseen
    assert output.getvalue().splitlines() == [
        "3 models side by side: 300.0 s (0 % done)",
        "3 models side by side: 300.0 s (50 % done, about 5 min left)",
    ]


def test_all_is_done_when_the_record_is_there_not_when_rounds_may_still_be_added() -> None:
    output, now = io.StringIO(), [0.0]
    with Display(ONE, {"latency": 4}, Console(file=output, width=200), clock=lambda: now[0]) as display:
        for _ in range(6):
            with display.process("a: a round"):
                now[0] += 60.0
            display.step(KEYS["a"], "latency")
        display.finish(CELLS["a"], record(Status.OK))
        display.say(f"{display._bar.tasks[0].percentage:.0f} %")
    percentages = [line.partition("(")[2].partition(" %")[0] for line in output.getvalue().splitlines()[:6]]
    assert percentages == ["0", "25", "50", "75", "75", "75"]
    assert output.getvalue().splitlines()[5:] == [
        "a: a round: 60.0 s (75 % done, about 1 min left)",
        "[1/1] a: ok",
        "100 %",
    ]


def test_a_cell_is_called_as_the_run_tells_it_from_others_and_a_baseline_by_its_own_label() -> None:
    display = Display({KEYS["a"]: "a@samples=8"}, STEPS, Console(file=io.StringIO()))
    assert display.label(CELLS["a"]) == "a@samples=8"
    assert display.label(CELLS["b"]) == CELLS["b"].label


def test_on_a_terminal_the_bar_shows_it() -> None:
    terminal, now = io.StringIO(), [0.0]
    with Display(ONE, STEPS, Console(file=terminal, force_terminal=True, width=200), clock=lambda: now[0]) as display:
        for stage in STEPS:
            now[0] += 90.0
            display.step(KEYS["a"], stage)
        with display.process("a: latency"):
            pass
    assert "about 2 min left" in terminal.getvalue()
