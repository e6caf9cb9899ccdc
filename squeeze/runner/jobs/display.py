"""Show a run at work: a bar on a terminal, one plain line a process elsewhere; both with the time that is left.

On stderr, always. The bar is drawn once a second: drawing it takes processor time from what is being measured.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell

STYLES = {Status.OK: "green", Status.UNSUPPORTED: "yellow"}
LONGEST_LINE = 500  # bytes
AT_ONCE = 0.05  # seconds between steps that ended together


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


class _Lap(NamedTuple):
    seconds: float
    steps: int


class Display:
    """Show a run of cells, each of which takes so many steps of each stage.

    labels: cell's key -> what it is called. steps: stage -> processes of its own; the last of several counts when the
    cell has its record, since further ones may be added until its interval is narrow enough. The time that is left is
    that of the steps ahead, each as long as the median of its stage so far: scoring takes ten times as long as one
    round, and comes first. Steps that end at the same moment, as those of models that were timed side by side do, took
    it together.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        steps: Mapping[str, int],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.labels, self.steps, self.done, self.left = labels, Counter(steps), 0, 0
        self.clock, self._last_step = clock, clock()
        self._ahead = Counter({stage: len(labels) * count for stage, count in steps.items()})
        self._laps: defaultdict[str, list[_Lap]] = defaultdict(list)
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._taken: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[said]}", style="dim", markup=False),
            console=self.console,
            refresh_per_second=1,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=self._ahead.total(), said="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @contextmanager
    def process(self, what: str, said: LastLine | None = None) -> Iterator[None]:
        """Show that a process runs, such as ``smollm2_135m-rtn-4: quality``, and beside it what it has ``said``."""
        self._bar.update(self._task, description=what, said=said or "", left=self._left())
        start = self.clock()
        yield
        if not self.console.is_terminal:
            percentage, left = self._bar.tasks[self._task].percentage, self._left()
            self.say(f"{what}: {self.clock() - start:.1f} s ({percentage:.0f} % done{left and ', '}{left})")

    def step(self, key: str, stage: str) -> None:
        """Count a step of the cell with this key, which has been taken or was not needed."""
        laps, seconds = self._laps[stage], self.clock() - self._last_step
        self._last_step = self.clock()
        if laps and seconds < AT_ONCE:
            laps[-1] = _Lap(laps[-1].seconds + seconds, laps[-1].steps + 1)
        else:
            laps.append(_Lap(seconds, 1))
        self._taken[key][stage] += 1
        if self._taken[key][stage] <= self._foreseen(stage):
            self._pass_by(Counter([stage]))

    def label(self, cell: Cell) -> str:
        """Return what a cell is called; one that is none of the run's (a baseline) by its own label."""
        return self.labels.get(cell.key, cell.label)

    def finish(self, cell: Cell, record: Record, by: str = "") -> None:
        """Say that a cell has its record, which is on the disk; it takes no further steps. by: who else measured it."""
        self._end(cell.key)
        self.done += 1
        why = f" in {record.stage}: {record.reason}" if record.reason else ""
        whose = f" (measured by {by})" if by else ""
        what = f"{self.label(cell)}: {record.status}{why}{whose}"
        self.say(f"[{self.done}/{len(self.labels)}] {what}", STYLES.get(record.status, "red"))

    def leave(self, cell: Cell, why: str) -> None:
        """Say that a cell stays without a record, since the environment failed it; it takes no further steps."""
        self._end(cell.key)
        self.left += 1
        self.say(f"{self.label(cell)}: pending: {why}; `squeeze resume` measures it", "yellow")

    def _end(self, key: str) -> None:
        taken = self._taken.pop(key, Counter())
        self._pass_by(self.steps - Counter({stage: min(taken[stage], self._foreseen(stage)) for stage in taken}))

    def _foreseen(self, stage: str) -> int:
        """Return how many steps of a stage count while the cell has no record."""
        return max(1, self.steps[stage] - 1)

    def _pass_by(self, steps: Counter[str]) -> None:
        self._ahead -= steps
        self._bar.advance(self._task, steps.total())

    def _left(self) -> str:
        """Say how long the steps ahead take; nothing while there is a stage of which none has been taken."""
        if any(stage not in self._laps for stage in self._ahead):
            return ""
        paces = {stage: median(lap.seconds / lap.steps for lap in self._laps[stage]) for stage in self._ahead}
        seconds = sum(count * paces[stage] for stage, count in self._ahead.items())
        return f"about {seconds / 60:.0f} min left" if seconds >= 60 else "less than a minute left"

    def say(self, line: str, style: str = "") -> None:
        """Print one line, above the bar where there is one."""
        self.console.print(Text(line, style))
