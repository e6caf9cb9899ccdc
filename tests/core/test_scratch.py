"""Scratch folders of the dead are removed; those of the living, and what is not ours, are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from squeeze.core.scratch import LOCK, Scratch

PROGRAM = """
import sys; from pathlib import Path; from squeeze.core.scratch import Scratch
made = Scratch.make("squeeze-", Path(sys.argv[1])); (made.path / "file").touch(); print(made.path, flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.promise(17)


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that owns a scratch folder until it is killed."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_the_folder_of_a_process_that_was_killed_is_removed_by_the_next(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    left = folder_of(other)
    living = Scratch.make("squeeze-", tmp_path)
    assert (left / "file").exists()
    other.kill()
    other.communicate()
    assert (left / "file").exists()
    Scratch.make("squeeze-", tmp_path).remove()
    assert not left.exists()
    assert living.path.exists()
    living.remove()
    assert not living.path.exists()


def test_what_is_not_ours_stays(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    left = folder_of(other)
    other.kill()
    other.communicate()
    (left / LOCK).write_text("another-host")
    for name in ("squeeze-unlocked", "another-prefix", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "another-prefix" / LOCK).write_text("")
    (tmp_path / "squeeze-file").touch()
    (tmp_path / "elsewhere" / LOCK).write_text("")
    (tmp_path / "squeeze-link").symlink_to(tmp_path / "elsewhere")
    before = set(tmp_path.rglob("*"))
    Scratch.make("squeeze-", tmp_path).remove()
    assert set(tmp_path.rglob("*")) == before
