"""Progress is told on stderr: a line where nobody watches, a bar on a terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest

from squeeze.core.progress import counted, progress, training


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


def test_a_training_shows_its_steps_and_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with training("qat", 64) as trained:
        trained(16, 0.61234)
    assert "qat, loss 0.6123" in terminal.getvalue()
    assert "16/64" in terminal.getvalue()


def test_lines_about_a_training_say_how_long_it_takes_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with training("qat", 64) as trained:
        for step in (16, 17, 32, 64):  # it goes on from step 15
            now = 10.0 * step
            trained(step, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "qat: step 16 of 64, loss 0.5000",
        "qat: step 32 of 64, loss 0.5000, 320 s left",
        "qat: step 64 of 64, loss 0.5000",
    ]


def test_what_is_counted_shows_how_much_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with counted("comparing", 8192) as advance:
        advance(1024)
    assert capsys.readouterr() == ("", "comparing ...\n")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with counted("comparing", 8192) as advance:
        advance(1024)
    assert "1024/8192" in terminal.getvalue()
