"""Let the processes of a group work in turns, one at a time, there and back again, until all have ended.

What is timed side by side is compared within a second, whatever the machine does meanwhile (A B C C B A A B C ...). The
gate of a member is a pair of sockets. A member that asks for its next turn (`squeeze.probes.turns`) writes a byte and
blocks until it reads one, so whoever does not work takes no processor time. A process is started when its first turn
comes, and one that never asks has the machine to itself until it ends: a group of one is an ordinary job.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from squeeze.runner.jobs import limits
from squeeze.runner.jobs.limits import Limits, Watch
from squeeze.runner.jobs.outcome import Exit

TICK = 0.5  # seconds between two looks at a job's memory
GO = b"!"

Start = Callable[[int | None], int]  # starts a process, given the descriptor of its gate, and returns its pid


class RunnerGoneError(Exception):
    """Say that the runner has closed its pipe: nothing is waited for any more."""


def conduct(members: Sequence[Member], runner: int, woken: int) -> bool:
    """Let the members work in turns until each has its exit; return whether the runner was there all the time.

    runner: a descriptor that becomes readable when the runner closes it or is gone; then every process is ended. woken:
    one that becomes readable when a child ends, read without blocking.
    """
    try:
        for member in _in_turns(members):
            member.work(runner, woken)
            if member.exit is not None:
                limits.end_descendants(member.pid, spare={other.pid for other in members if other.exit is None})
    except RunnerGoneError:
        for member in members:
            member.close()
        limits.end_descendants(members[0].pid)
        return False
    return True


@dataclass
class Member:
    """Hold one process of a group.

    start: begins it. bounds: limits of its own work; whoever waits for its turn uses up no seconds. accompanied: it has
    a gate; without one its first turn is its last. exit: how it ended, once it has.
    """

    start: Start
    bounds: Limits
    accompanied: bool = False
    pid: int = 0
    exit: Exit | None = None
    _worked: float = 0.0
    _used: int = 0
    _kills: int | None = None
    _watch: Watch | None = None
    _gate: socket.socket | None = None

    def work(self, runner: int, woken: int) -> None:
        """Give the process its turn, its first one by starting it; return when it asks for the next, or has ended.

        Raises RunnerGoneError, the process ended, when descriptor ``runner`` becomes readable.
        """
        began = time.monotonic()
        self._let_go()
        assert self._watch is not None
        while (code := limits.exit_code(self.pid)) is None:
            self._used = self._watch.private_bytes() or self._used
            left = self.bounds.seconds - self._worked - (time.monotonic() - began)
            breach = "seconds" if left <= 0 else "bytes" if self._used > self.bounds.bytes else ""
            heard = _wait([runner, woken, self._gate], 0 if breach else min(TICK, left))
            if breach == "seconds" and limits.is_stopped(self.pid):
                breach = "stopped"
            if breach or runner in heard:
                self._end(limits.end_group(self.pid), began, breach)
                if runner in heard:
                    raise RunnerGoneError
                return
            if self._gate in heard and self._asks():
                self._worked += time.monotonic() - began
                return
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 1024)
        self._end(code, began)

    def close(self) -> None:
        """End the process, if it has begun and not ended."""
        if self.pid and self.exit is None:
            self._end(limits.end_group(self.pid), time.monotonic())

    def _let_go(self) -> None:
        if self._gate is not None:
            with contextlib.suppress(OSError):  # it ended while it waited, which its exit code will say
                self._gate.send(GO)
        if self.pid:
            return
        self._kills = limits.kernel_kills()
        if self.accompanied:
            self._gate, its_side = socket.socketpair()
            with its_side:
                self.pid = self.start(its_side.fileno())
        else:
            self.pid = self.start(None)
        self._watch = Watch(self.pid)

    def _asks(self) -> bool:
        """Read what came through the gate; whether the process asks for its next turn, or has closed its side."""
        assert self._gate is not None
        with contextlib.suppress(ConnectionError):  # it ended before it read what was sent last
            if self._gate.recv(1):
                return True
        self._gate = None
        return False

    def _end(self, code: int, began: float, breach: str = "") -> None:
        self._worked += time.monotonic() - began
        self.exit = Exit(code, self._worked, self._used, breach, limits.killed_since(self._kills))
        if self._gate is not None:
            self._gate.close()


def _in_turns(members: Sequence[Member]) -> Iterator[Member]:
    """Yield whoever is next, as long as any has not ended: there (A B C) and back again (C B A)."""
    for turn in itertools.count():
        if all(member.exit is not None for member in members):
            return
        yield from (member for member in members[:: -1 if turn % 2 else 1] if member.exit is None)


def _wait(sources: Sequence[int | socket.socket | None], seconds: float) -> Sequence[int | socket.socket]:
    """Return those of the sources that can be read, after ``seconds`` at most."""
    return select.select([source for source in sources if source is not None], [], [], seconds)[0]
