"""What may be read to load an artifact alone is its folder, the system and code; the kernel closes all else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from squeeze.core import landlock, plugins
from squeeze.core.cache import cache_root
from squeeze.probes import alone
from tests.plugins import install

PROGRAM = """
import sys
from pathlib import Path
from squeeze.core import landlock
assert landlock.allow([*sys.argv[2:], sys.prefix, "/usr", "/lib", "/proc"])
print(Path(sys.argv[2]).joinpath("file").read_text())
try:
    Path(sys.argv[1]).joinpath("file").read_text()
except PermissionError:
    print("closed")
"""


def test_code_of_plugins_may_be_read_and_neither_their_data_nor_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    package = install(site, "brought", {"layers/own.py": "", "data/weights.bin": "", "data/notes.py": ""})
    (site / "other").mkdir()
    (site / "cache").mkdir()
    monkeypatch.setenv("SQUEEZE_CACHE", str(site / "cache"))
    monkeypatch.syspath_prepend(site)
    assert plugins.installed()["brought"].folder == package
    assert cache_root() == site / "cache"
    found = set(alone.readable(tmp_path / "artifact"))
    assert {str(tmp_path / "artifact"), str(site / "other"), str(package / "layers" / "own.py"), "/usr"} <= found
    assert str(package / "data" / "notes.py") in found
    closed = (tmp_path, site, package, package / "data", package / "data" / "weights.bin", site / "cache", "/dev/shm")
    assert not found & set(map(str, closed))


@pytest.mark.skipif(
    landlock._call(landlock.CREATE_RULESET, None, 0, landlock.VERSION) < 1, reason="the kernel has no Landlock"
)
def test_what_is_not_allowed_is_closed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("open")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "a"), str(tmp_path / "b")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said == ["open", "closed"]
