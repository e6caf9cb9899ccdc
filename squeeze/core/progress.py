"""Tell a person what takes time: a bar on a terminal, one plain line elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

LINE_EVERY = 30.0  # seconds between two lines about a training, where nobody watches

Advance = Callable[[int], None]
Trained = Callable[[int, float], None]


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show ``title`` while the body runs, which may call the yielded ``advance(bytes_so_far)``."""
    from rich.progress import DownloadColumn, TimeElapsedColumn

    with _bar(title, None, DownloadColumn(), TimeElapsedColumn()) as advance:
        yield advance


@contextmanager
def counted(title: str, total: int) -> Iterator[Advance]:
    """Show ``title`` while the body runs, which calls the yielded ``advance(so_far)`` as it goes."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    with _bar(title, total, MofNCompleteColumn(), TimeRemainingColumn()) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int | None, *columns: ProgressColumn) -> Iterator[Advance]:
    """Draw a bar on a terminal, print one line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{title} ...", file=sys.stderr, flush=True)
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), *columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def training(title: str, steps: int) -> Iterator[Trained]:
    """Show ``title`` while the body trains, which calls the yielded ``trained(steps_so_far, loss)`` after each step."""
    if not sys.stderr.isatty():
        yield _lines(title, steps)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(title, total=steps)
        yield lambda done, loss: bar.update(task, completed=done, description=f"{title}, loss {loss:.4f}")


def _lines(title: str, steps: int) -> Trained:
    """Print a line for the first step, the last one, and now and then between, with the time that is left."""
    last, begun = -LINE_EVERY, time.monotonic()
    first = 0  # step that was told first: a training that goes on begins at a later one

    def tell(done: int, loss: float) -> None:
        nonlocal last, begun, first
        now = time.monotonic()
        begun, first = (begun, first) if first else (now, done)
        if done == steps or now - last >= LINE_EVERY:
            left = f", {(now - begun) / (done - first) * (steps - done):.0f} s left" if first < done < steps else ""
            print(f"{title}: step {done} of {steps}, loss {loss:.4f}{left}", file=sys.stderr, flush=True)
            last = now

    return tell


PIPE_WIDTH = 120  # columns when the output is no terminal


def console() -> Console:
    """Return where tables are printed: as wide as the terminal, wide enough where there is none."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, PIPE_WIDTH)
    return made
