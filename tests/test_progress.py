"""Progress is told on stderr: a line where nobody watches, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from squeeze.progress import progress


def test_one_plain_line_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("fetching it") as advance:
        advance(10)
        advance(20)
    assert capsys.readouterr() == ("", "fetching it ...\n")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("fetching it") as advance:
        advance(25_000_000)
    assert "fetching it" in terminal.getvalue()
    assert "25.0" in terminal.getvalue()
