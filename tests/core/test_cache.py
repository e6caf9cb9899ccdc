"""A sealed folder is made once, whole or absent, and damage to it is noticed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from squeeze.core import cache
from squeeze.core.cache import cache_root, sealed, using
from squeeze.core.errors import SqueezeError
from squeeze.core.paths import PACKAGE

# Makes the folder `made`, saying so in `log`: argv = log, seconds that making takes.
MAKER = """
import sys, time
from pathlib import Path
from squeeze.core.cache import sealed

def make(folder):
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
    (folder / "half").write_text("1")
    time.sleep(float(sys.argv[2]))
    (folder / "whole").write_text("2")

print(sealed("made", make))
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Writes `content` and counts how often it was asked to."""

    def __init__(self, content: str = "weights") -> None:
        self.content, self.calls = content, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(self.content)


def test_root_is_the_folder_of_the_environment(root: Path) -> None:
    assert cache_root() == root


def test_a_root_in_use_goes_before_that_of_the_environment_which_stays_as_it_is(root: Path, tmp_path: Path) -> None:
    with using(tmp_path / "other"):
        assert sealed("name", Maker()) == tmp_path / "other" / "name"
        assert os.environ["SQUEEZE_CACHE"] == str(root)
    assert cache_root() == root


def test_every_folder_of_the_cache_is_said_to_be_fetched_computed_or_agreed_on() -> None:
    """Else `squeeze rerun` would fetch anew what was fetched, or take what was computed from the cache."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        names |= set(re.findall(r"""(?:sealed\(f?|cache_root\(\) / |folder = f)["']([a-z_]+)["'/]""", path.read_text()))
    assert {"artifacts", "quality", "corpora", "locks"} <= names
    assert names <= cache.FETCHED | cache.COMPUTED | cache.AGREED


def test_made_once(root: Path) -> None:
    make = Maker()
    assert sealed("kind/name", make) == sealed("kind/name", make) == root / "kind" / "name"
    assert make.calls == 1


@pytest.mark.parametrize("damaged", ["weighty", "weight"], ids=["changed", "cut short"])
def test_a_damaged_file_is_made_again(damaged: str, capsys: pytest.CaptureFixture[str]) -> None:
    make = Maker()
    file = sealed("name", make) / "inner" / "file"
    time.sleep(0.01)
    file.write_text(damaged)
    assert (sealed("name", make) / "inner" / "file").read_text() == "weights"
    assert make.calls == 2
    assert "damaged" in capsys.readouterr().err


def test_a_lost_file_is_made_again() -> None:
    make = Maker()
    (sealed("name", make) / "inner" / "file").unlink()
    assert (sealed("name", make) / "inner" / "file").is_file()


def test_a_touched_but_equal_file_is_left_alone() -> None:
    make = Maker()
    os.utime(sealed("name", make) / "inner" / "file", (1, 1))
    sealed("name", make)
    assert make.calls == 1


def test_a_failure_leaves_nothing(root: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise SqueezeError("no network")

    with pytest.raises(SqueezeError, match="no network"):
        sealed("name", fail)
    assert [path.name for path in root.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "disk full"), (errno.EDQUOT, "disk full"), (errno.EACCES, "not writable")]
)
def test_a_disk_that_refuses_is_explained(number: int, said: str) -> None:
    def fail(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(folder))

    with pytest.raises(SqueezeError, match=said) as caught:
        sealed("name", fail)
    assert "SQUEEZE_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_root_that_is_a_file_is_explained(root: Path) -> None:
    root.write_text("")
    with pytest.raises(SqueezeError, match="not writable"):
        sealed("name", Maker())


def test_other_errors_of_the_system_are_not_disguised() -> None:
    def fail(folder: Path) -> None:
        raise FileNotFoundError("a bug")

    with pytest.raises(FileNotFoundError):
        sealed("name", fail)


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [subprocess.Popen([sys.executable, "-c", MAKER, log, "0.5"], stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert log.read_text() == "made\n"


def test_a_killed_maker_leaves_no_half(tmp_path: Path, root: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", MAKER, log, "60"]) as process:
        while not (root / ".made.part" / "half").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (root / "made").exists()
    folder = sealed("made", Maker())
    assert sorted(path.name for path in folder.iterdir()) == [".manifest.json", "inner"]
    assert not (root / ".made.part").exists()
