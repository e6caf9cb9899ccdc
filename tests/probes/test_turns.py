"""A process waits for its turn, and its own clock stands still meanwhile."""

from __future__ import annotations

import math
import socket
import threading
import time
from pathlib import Path

import pytest

from squeeze.probes import turns
from squeeze.probes.turns import Turns, pressure


def test_without_a_gate_turns_follow_each_other_at_once() -> None:
    alone = Turns()
    alone.next()
    assert (alone.interleaved, alone.waited) == (False, 0.0)


def test_a_turn_is_asked_for_and_waited_for() -> None:
    conductor, own = socket.socketpair()
    with conductor, own:
        kept = Turns(own.fileno())
        assert kept.interleaved

        def give() -> None:
            conductor.recv(1)
            time.sleep(0.2)
            conductor.send(b"!")

        thread = threading.Thread(target=give)
        thread.start()
        start, own_start = time.perf_counter(), kept.clock()
        kept.next()
        passed, own_passed = time.perf_counter() - start, kept.clock() - own_start
        thread.join()
    assert passed >= 0.2
    assert own_passed < 0.1


def test_nobody_who_gives_turns_ends_the_process() -> None:
    conductor, own = socket.socketpair()
    with own:
        own.send(b"")
        conductor.shutdown(socket.SHUT_WR)
        with conductor, pytest.raises(SystemExit, match="gone"):
            Turns(own.fileno()).next()


def test_pressure_is_read_where_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, stalls = tmp_path / "stat", tmp_path / "cpu"
    statistics.write_text("cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    stalls.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=0\n")
    monkeypatch.setattr(turns, "STATISTICS", statistics)
    monkeypatch.setattr(turns, "PRESSURE", stalls)
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    before = time.monotonic()
    now, steal, stalled = pressure()
    assert (steal, stalled) == (2.5, 1.5)
    assert before <= now <= time.monotonic()
    statistics.unlink()
    stalls.unlink()
    queue = tmp_path / "schedstat"
    queue.write_text("1250000000 340000000 17\n")
    monkeypatch.setattr(turns, "QUEUE", queue)
    assert pressure()[2] == 0.34  # the kernel keeps no pressure: how long this process itself has waited
    queue.unlink()
    assert all(math.isnan(value) for value in pressure()[1:])
