"""A busy machine is named before anything is timed, waited for, or refused."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from squeeze.core.errors import SqueezeError
from squeeze.core.load import Load
from squeeze.runner.quiet import POLL, see_to_quiet

QUIET, BUSY = Load(0.02, 2, 0.0, 0.3), Load(1.3, 2, 0.6, 7.0)


class Machine:
    """Loads, one a look, the last for ever; time passes in sleep alone."""

    def __init__(self, loads: Iterable[Load]) -> None:
        self.loads, self.last, self.now = iter(loads), QUIET, 0.0

    def look(self) -> Load:
        self.last = next(self.loads, self.last)
        return self.last

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def see(self, minutes: float | None) -> None:
        see_to_quiet(minutes, self.look, self.sleep, lambda: self.now)


def test_a_quiet_machine_is_no_matter(capsys: pytest.CaptureFixture[str]) -> None:
    Machine([QUIET]).see(None)
    assert capsys.readouterr().err == ""


def test_a_busy_one_is_named_with_the_cure(capsys: pytest.CaptureFixture[str]) -> None:
    Machine([BUSY]).see(None)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: other programs use 1.3 of 2 processors (load 7.0")
    assert "contended" in first
    assert "--quiet-machine" in second


def test_it_is_waited_for_until_it_is_quiet_twice_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine([BUSY, BUSY, QUIET, BUSY, QUIET, QUIET, BUSY])
    machine.see(10)
    assert machine.now == 5 * POLL
    assert capsys.readouterr().err.startswith("waiting for a quiet machine, 10 min at most: other programs use 1.3")


def test_a_quiet_one_is_looked_at_twice_and_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine([QUIET])
    machine.see(10)
    assert machine.now == POLL
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("minutes", [0, 1])
def test_one_that_stays_busy_is_refused(minutes: float) -> None:
    machine = Machine([BUSY])
    with pytest.raises(SqueezeError, match=rf"--quiet-machine {minutes}: other programs use 1.3 of 2 .* stop them, or"):
        machine.see(minutes)
    assert 60 * minutes <= machine.now < 60 * minutes + POLL
