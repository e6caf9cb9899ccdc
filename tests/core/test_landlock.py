"""What is forbidden to a process stays so, for native code and children too; all else goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from squeeze.core import landlock

pytestmark = pytest.mark.skipif(
    landlock._call(landlock.CREATE_RULESET, None, 0, landlock.VERSION) < landlock.REFERS,
    reason="the kernel has no Landlock of version 2",
)
PROGRAM = """
import os, subprocess, sys, threading
from pathlib import Path
from squeeze.core import landlock
hidden, beside = Path(sys.argv[1]), Path(sys.argv[2])
assert landlock.forbid([str(hidden)])

def refused(work):
    try:
        work()
    except (OSError, subprocess.CalledProcessError):
        return True
    return False

secret, link = hidden / "deep" / "secret", beside / "link"
link.symlink_to(secret)
fails = [
    lambda: secret.read_bytes(),
    lambda: link.read_bytes(),
    lambda: Path(f"/proc/self/root{secret}").read_bytes(),
    lambda: os.link(secret, beside / "hard"),
    lambda: secret.rename(beside / "moved"),
    lambda: hidden.rename(beside / "folder"),
    lambda: subprocess.run(["cat", secret], check=True, capture_output=True),
    lambda: os.open(secret.name, os.O_RDONLY, dir_fd=os.open(secret.parent, os.O_PATH)),
]
print([refused(each) for each in fails])
thread = []
other = threading.Thread(target=lambda: thread.append(refused(fails[0])))
other.start()
other.join()
works = [
    lambda: (beside / "open").read_bytes(),
    lambda: (beside / "new").write_text("new") and (beside / "new").read_text(),
    lambda: (beside / "new").rename(beside / "other" / "moved"),
    lambda: (hidden / "new").write_text("it may write, and list"),
    lambda: list(hidden.iterdir()),
    lambda: subprocess.run([sys.executable, "-c", "import json"], check=True),
    lambda: Path("/proc/self/status").read_bytes(),
]
print(thread, [refused(each) for each in works])
"""


def test_what_lies_in_a_folder_cannot_be_read_by_any_way(tmp_path: Path) -> None:
    hidden, beside = tmp_path / "hidden", tmp_path / "beside"
    (hidden / "deep").mkdir(parents=True)
    (hidden / "deep" / "secret").write_text("secret")
    (beside / "other").mkdir(parents=True)
    (beside / "open").write_text("open")
    command = [sys.executable, "-c", PROGRAM, str(hidden), str(beside)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str([True] * 8), f"[True] {[False] * 7}"], done.stderr


@pytest.mark.parametrize(
    "lack",
    [
        lambda patch: patch.setattr(sys, "platform", "darwin"),
        lambda patch: patch.setattr(landlock, "_call", lambda *_: -38),
        lambda patch: patch.setattr(landlock, "_beside", lambda _: (_ for _ in ()).throw(PermissionError)),
    ],
)
def test_where_the_kernel_cannot_it_is_said(lack: Callable[[pytest.MonkeyPatch], None], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lack(patch)
        assert not landlock.forbid([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("it can be read")
    assert (tmp_path / "file").read_text()
