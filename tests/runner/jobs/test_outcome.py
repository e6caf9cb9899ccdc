"""What an exit means, in words that give nothing away."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from squeeze.core.errors import IntegrityError, SqueezeError, TransientError, Unsupported
from squeeze.records.record import Status
from squeeze.records.sanitize import public
from squeeze.runner.jobs import outcome
from squeeze.runner.jobs.limits import Limits
from squeeze.runner.jobs.outcome import Exit, judge

LIMITS = Limits(seconds=60, bytes=2**30)


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unsupported("no"), Status.UNSUPPORTED),
        (IntegrityError("torn"), Status.INVALID),
        (SqueezeError("no such repository"), Status.CRASHED),
        (TransientError("no network"), None),
        (OSError(28, "No space left on device"), None),
        (MemoryError(), Status.OUT_OF_MEMORY),
        (OutOfMemoryError("CUDA out of memory"), Status.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Status.OUT_OF_MEMORY),
        (OSError(12, "Cannot allocate memory"), Status.OUT_OF_MEMORY),
        (RuntimeError("shapes do not match"), Status.CRASHED),
        (ValueError("out of memory of what was said"), Status.CRASHED),
        (KeyboardInterrupt(), Status.CRASHED),
    ],
)
def test_exceptions(tmp_path: Path, error: BaseException, status: Status | None) -> None:
    outcome.report(tmp_path, error)
    failure = judge(Exit(1, 1.0), tmp_path, LIMITS, "build")
    assert failure is not None
    assert (failure.status, failure.stage) == (status, "build")
    assert failure.reason.startswith(type(error).__name__)


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        (Exit(3, 1.0), Status.CRASHED, "exit code 3"),
        (Exit(-signal.SIGSEGV, 1.0), Status.CRASHED, "ended by SIGSEGV"),
        (Exit(-signal.SIGKILL, 1.0, kernel_kill=True), Status.OUT_OF_MEMORY, "killed by the kernel"),
        (Exit(-signal.SIGKILL, 1.0, kernel_kill=None), Status.OUT_OF_MEMORY, "killed by the kernel"),
        (Exit(-signal.SIGKILL, 1.0, kernel_kill=False), None, "ended by SIGKILL from outside"),
        (Exit(-signal.SIGTERM, 1.0, kernel_kill=False), None, "ended by SIGTERM from outside"),
        (Exit(-signal.SIGABRT, 1.0, kernel_kill=False), Status.CRASHED, "ended by SIGABRT"),
        (Exit(-signal.SIGKILL, 61.0, breach="stopped"), None, "stopped from outside (SIGSTOP) until its limit of 60 s"),
        (Exit(-signal.SIGTERM, 61.0, breach="seconds"), Status.TIMEOUT, "limit of 60 s"),
        (Exit(0, 61.0, breach="seconds"), Status.TIMEOUT, "limit of 60 s"),
        (Exit(-signal.SIGTERM, 1.0, 2**31, "bytes"), Status.OUT_OF_MEMORY, "limit of 1024 MiB; ended (at 2048 MiB)"),
    ],
)
def test_exits_without_a_word(tmp_path: Path, end: Exit, status: Status | None, reason: str) -> None:
    failure = judge(end, tmp_path, LIMITS, "latency")
    assert failure is not None
    assert failure.status is status
    assert reason in failure.reason


def test_success_is_no_failure(tmp_path: Path) -> None:
    assert judge(Exit(0, 1.0), tmp_path, LIMITS, "build") is None


@pytest.mark.parametrize("word", [b"", b"{", b'{"status": "fine", "error": "E", "message": ""}', b"[]", b'"text"'])
def test_a_torn_word_counts_for_nothing(tmp_path: Path, word: bytes) -> None:
    (tmp_path / outcome.REPORT).write_bytes(word)
    failure = judge(Exit(1, 1.0), tmp_path, LIMITS, "build")
    assert failure is not None
    assert failure.reason.startswith("exit code 1")


def test_a_reason_is_one_short_line(tmp_path: Path) -> None:
    outcome.report(tmp_path, ValueError("first line " + "x" * 1000 + "\nsecond line"))
    failure = judge(Exit(1, 1.0), tmp_path, LIMITS, "build")
    assert failure is not None
    assert len(failure.reason) <= outcome.REASON_LENGTH
    assert "second" not in failure.reason


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('File "/opt/venv/lib/python3.11/site-packages/torch/nn.py", line 3', 'File "nn.py", line 3'),
        ("no such file: '/home/someone/.cache/squeeze/x.safetensors'", "no such file: 'x.safetensors'"),
        ("~/models/a.gguf is torn", "a.gguf is torn"),
        ("576 / 128 is no integer, 3/4 neither", "576 / 128 is no integer, 3/4 neither"),
        ("see https://example.org/a/b for it", "see https://example.org/a/b for it"),
        ("two\n  lines", "two lines"),
    ],
)
def test_nothing_private_is_said(text: str, shown: str) -> None:
    assert public(text) == shown


def test_nor_the_users_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert public("written by ada, not by adam") == "written by user, not by adam"


def test_the_tail_is_the_end_of_the_log() -> None:
    log = "\n".join(f"line {number}" for number in range(1000)) + "\n    ^^^^^^\nlast line of /a/b/c.py\n"
    tail = outcome.tail(log)
    assert len(tail) <= 1000
    assert tail.endswith("line 999\nlast line of c.py")
