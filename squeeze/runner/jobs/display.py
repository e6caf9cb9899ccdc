"""Show a run at work: a bar on a terminal, one plain line a process elsewhere; both with the time that is left.

On stderr, always. The bar is drawn once a second: drawing it takes processor time from what is being measured.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from squeeze.records.record import Record, Status

STYLES = {Status.OK: "green", Status.UNSUPPORTED: "yellow"}
LONGEST_LINE = 500  # bytes
MEMORY = 3600  # seconds over which the speed is averaged that the remaining time is reckoned with


@dataclass(frozen=True)
class LastLine:
    """Tell what a process has said last, such as a training's step and loss: read from its log whenever it is shown.

    start: where in the log the process begins, in bytes.
    """

    log: Path
    start: int

    def __str__(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(self.start, self.log.stat().st_size - LONGEST_LINE))
            lines = file.read().decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        return "".join(letter for letter in said if letter.isprintable())


class Display:
    """Show a run of ``cells`` cells, each of which takes at most ``steps`` steps (processes of its own)."""

    def __init__(
        self, cells: int, steps: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.cells, self.steps, self.done = cells, steps, 0
        self.clock, self.started = clock, clock()
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._taken: Counter[str] = Counter()
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[said]}", style="dim", markup=False),
            console=self.console,
            refresh_per_second=1,
            speed_estimate_period=MEMORY,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=cells * steps, said="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @contextmanager
    def process(self, what: str, said: LastLine | None = None) -> Iterator[None]:
        """Show that a process runs, such as ``smollm2_135m-rtn-4: quality``, and beside it what it has ``said``."""
        self._bar.update(self._task, description=what, said=said or "")
        start = self.clock()
        yield
        if not self.console.is_terminal:
            self.say(f"{what}: {self.clock() - start:.1f} s{self._ahead()}")

    def step(self, key: str) -> None:
        """Count a step of the cell with this key, which has been taken or was not needed."""
        self._taken[key] += 1
        self._bar.advance(self._task)

    def finish(self, label: str, record: Record) -> None:
        """Say that a cell has its record, which is on the disk; it takes no further steps."""
        self._bar.advance(self._task, self.steps - self._taken.pop(record.key, 0))
        self.done += 1
        why = f" in {record.stage}: {record.reason}" if record.reason else ""
        self.say(f"[{self.done}/{self.cells}] {label}: {record.status}{why}", STYLES.get(record.status, "red"))

    def _ahead(self) -> str:
        """Say what share of the steps is done and how long the rest takes at their pace; nothing before the first."""
        taken, all_steps = self._bar.tasks[self._task].completed, self.cells * self.steps
        if not taken:
            return ""
        seconds = (self.clock() - self.started) * (all_steps - taken) / taken
        left = f"about {seconds / 60:.0f} min" if seconds >= 60 else "less than a minute"
        return f" ({taken / all_steps:.0%} done, {left} left)"

    def say(self, line: str, style: str = "") -> None:
        """Print one line, above the bar where there is one."""
        self.console.print(Text(line, style))
