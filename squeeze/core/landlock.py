"""Forbid this process, for good, to read some folders, or to connect to other machines (Linux 5.13, Landlock).

The kernel keeps the rules: no code in the process can lift them, native code and processes that it starts included, and
no privilege is needed to set them. They allow what they name, so all beside the ways to the forbidden folders is named.
See https://docs.kernel.org/userspace-api/landlock.html.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterable, Iterator

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same numbers on every architecture
VERSION = 1  # flag of CREATE_RULESET: answer with the version of the interface instead
PATH_BENEATH = 1  # a type of rule
NO_NEW_PRIVILEGES = 38  # of prctl; without it only the privileged may restrict themselves
READ_FILE, REFER = 1 << 2, 1 << 13  # REFER: link or move a file into another folder, refused unless it is allowed
CONNECT_TCP = 1 << 1
REFERS, CONNECTS = 2, 4  # versions of the interface from which these are known


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def forbid(folders: Iterable[str]) -> bool:
    """Forbid to read what lies in the folders (real paths), and to connect by TCP from version 4 on.

    Files that are put later beside a forbidden folder, or beside one that leads to it, cannot be read either. Holds for
    this thread and those that it starts. Returns False, and does nothing, where the kernel has no Landlock, or where
    a folder on the way cannot be listed. Raises OSError when the kernel refuses a rule.
    """
    try:
        beside = list(_beside(set(folders)))
    except OSError:
        return False
    return allow(beside)


def allow(paths: Iterable[str]) -> bool:
    """Forbid to read any other file than these, and those in these folders; and to connect by TCP, as ``forbid`` does.

    Returns False, and does nothing, where the kernel has no Landlock. Raises OSError when the kernel refuses a rule.
    """
    if sys.platform != "linux" or (version := _call(CREATE_RULESET, None, 0, VERSION)) < 1:
        return False
    rights = READ_FILE | (REFER if version >= REFERS else 0)
    rules = _Ruleset(rights, CONNECT_TCP)
    size = ctypes.sizeof(rules) if version >= CONNECTS else ctypes.sizeof(ctypes.c_uint64)
    ruleset = _checked(_call(CREATE_RULESET, ctypes.byref(rules), size, 0))
    try:
        for path in paths:
            _allow(ruleset, path, rights)
        if ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError("the kernel refuses to give up privileges")
        _checked(_call(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def _beside(folders: set[str]) -> Iterator[str]:
    """Yield all that lies beside the folders and beside the folders that lead to them, links left out."""
    ways = {os.path.dirname(folder) for folder in folders}
    while further := {os.path.dirname(way) for way in ways} - ways:
        ways |= further
    within = {way for way in ways if any(f"{way}/".startswith(f"{folder}/") for folder in folders)}
    for way in ways - within:
        with os.scandir(way) as entries:
            yield from (each.path for each in entries if each.path not in folders | ways and not each.is_symlink())


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # it is gone, or not ours to see
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(place).st_mode)
        rule = _Beneath(rights if is_folder else READ_FILE, place)
        _checked(_call(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0))
    finally:
        os.close(place)


def _call(number: int, *arguments: object) -> int:
    """Make a system call; negative: the error's number."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = int(libc.syscall(ctypes.c_long(number), *arguments))
    return -ctypes.get_errno() if answer < 0 else answer


def _checked(answer: int) -> int:
    if answer < 0:
        raise OSError(-answer, f"Landlock: {os.strerror(-answer)}")
    return answer
