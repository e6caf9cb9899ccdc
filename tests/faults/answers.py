"""Ask the command line for something hostile: one line must answer, soon, in little memory."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squeeze import cli
from squeeze.core import cache
from squeeze.core.errors import SqueezeError
from squeeze.runner import run as runs

SECONDS, BYTES = 5.0, 500 * 2**20  # of an answer: processor time, so that a busy machine fails nothing; memory beyond
HANGS = 120  # seconds after which it is no answer any more


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def sparse(path: Path, size: int = 60_000_000) -> None:
    path.touch()
    os.truncate(path, size)


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is not refused is not run; what hangs is ended."""

    def nothing_refused(*_: object) -> None:
        raise SqueezeError("nothing refused it")

    def hung(*_: object) -> None:
        raise AssertionError(f"no answer after {HANGS} s")

    monkeypatch.setattr(runs, "Executor", nothing_refused)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """The largest resident memory of this process since it was last asked, in bytes."""
    [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")
    return int(found) * 1024


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command line answers a hostile request with."""
    peak()
    before, started = peak(), time.process_time()
    code = cli.main(arguments)
    seconds, grown = time.process_time() - started, peak() - before
    shown = capsys.readouterr()
    assert (code, shown.out) == (cli.USAGE, "")
    assert shown.err.startswith("error: ")
    assert shown.err.endswith("\n")
    assert shown.err[:-1].isprintable(), "one line, and nothing in it steers the terminal"
    assert len(shown.err) < 2000
    assert seconds < SECONDS
    assert grown < BYTES
    return shown.err
