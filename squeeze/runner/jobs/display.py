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
    """Show a run of ``cells`` cells, each of which takes so many steps of each stage.

    steps: stage -> processes of its own. The time that is left is that of the steps ahead, each as long as the median
    of its stage so far: scoring takes ten times as long as one round, and comes first. Steps that end at the same
    moment, as those of models that were timed side by side do, took it together.
    """

    def __init__(
        self,
        cells: int,
        steps: Mapping[str, int],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.cells, self.steps, self.done, self.left = cells, Counter(steps), 0, 0
        self.clock, self._last_step = clock, clock()
        self._ahead = Counter({stage: cells * count for stage, count in steps.items()})
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
        if self._taken[key][stage] <= self.steps[stage]:
            self._pass_by(Counter([stage]))

    def finish(self, label: str, record: Record, by: str = "") -> None:
        """Say that a cell has its record, which is on the disk; it takes no further steps. by: who else measured it."""
        self._end(record.key)
        self.done += 1
        why = f" in {record.stage}: {record.reason}" if record.reason else ""
        whose = f" (measured by {by})" if by else ""
        self.say(f"[{self.done}/{self.cells}] {label}: {record.status}{why}{whose}", STYLES.get(record.status, "red"))

    def leave(self, label: str, key: str, why: str) -> None:
        """Say that a cell stays without a record, since the environment failed it; it takes no further steps."""
        self._end(key)
        self.left += 1
        self.say(f"{label}: pending: {why}; `squeeze resume` measures it", "yellow")

    def _end(self, key: str) -> None:
        self._pass_by(self.steps - self._taken.pop(key, Counter()))

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
