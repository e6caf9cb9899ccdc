"""Other programs at work are seen, and one's own are not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from squeeze.core import load
from squeeze.core.load import USED, WAITED, Load, look

SPIN = "print(flush=True)\nwhile True: pass"


@pytest.mark.timed
def test_a_program_that_spins_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        found = look(1.0)
        other.kill()
    assert found.used > USED
    assert found.is_busy


def test_a_process_does_not_count_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((10.0, 11.5))
    own = iter((3.0, 4.4))
    monkeypatch.setattr(load, "_busy", lambda: next(seconds))
    monkeypatch.setattr(time, "process_time", lambda: next(own))
    assert look(0.01).used == pytest.approx(0.1 / 0.01)


@pytest.mark.parametrize(
    ("used", "waited", "busy"),
    [
        (0.05, 0.01, False),
        (0.05, None, False),
        (USED + 0.01, 0.0, True),
        (0.0, WAITED + 0.01, True),
        (1.5, None, True),
    ],
)
def test_a_machine_is_busy_by_either_sign(used: float, waited: float | None, busy: bool) -> None:
    assert Load(used, 2, waited, 7.0).is_busy is busy


def test_what_is_found_is_said() -> None:
    found = str(Load(1.34, 2, 0.62, 7.04))
    assert found == "other programs use 1.3 of 2 processors (load 7.0, some task waited in 62% of the last 10 s)"
    assert str(Load(0.0, 2, None, 0.1)) == "other programs use 0.0 of 2 processors (load 0.1)"


def test_waiting_is_read_where_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PRESSURE", tmp_path / "cpu")
    assert look(0.01).waited is None
    (tmp_path / "cpu").write_text("some avg10=30.02 avg60=13.95 avg300=25.39 total=3812363222\nfull avg10=0.00\n")
    assert look(0.01).waited == pytest.approx(0.3002)
