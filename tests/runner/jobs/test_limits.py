"""How the memory of a job is watched while it is timed."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from squeeze.runner.jobs import limits
from squeeze.runner.jobs.limits import LOOK_EVERY, Watch

MIB = 1024**2
HOLDING = "import sys; held = bytearray(b'x' * (64 << 20)); print('ready', flush=True); sys.stdin.read()"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_all_processes_are_read_of_once_in_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second, while tokens were timed, is what it was."""
    looks: list[int] = []
    family = limits._family
    monkeypatch.setattr(limits, "_family", lambda pid: looks.append(pid) or family(pid))
    watch = Watch(os.getpid(), clock := Clock())
    for _ in range(60):  # half a minute of ticks
        assert watch.private_bytes() > MIB
        clock.now += 0.5
    assert len(looks) == 30 / LOOK_EVERY


def test_a_descendant_counts_from_the_next_look_until_it_is_gone() -> None:
    watch = Watch(os.getpid(), clock := Clock())
    alone = watch.private_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert watch.private_bytes() < alone + 32 * MIB
        clock.now += LOOK_EVERY
        assert watch.private_bytes() >= alone + 64 * MIB
    assert not psutil.pid_exists(child.pid)
    assert watch.private_bytes() < alone + 32 * MIB
