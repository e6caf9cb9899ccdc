"""See that nothing else works on this machine before anything is timed. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from squeeze.core import load
from squeeze.core.errors import SqueezeError
from squeeze.core.load import Load

POLL = 5.0  # seconds between two looks
QUIET_LOOKS = 2  # in a row that end the wait


def see_to_quiet(
    minutes: float | None,
    look: Callable[[], Load] = load.look,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Warn on stderr of a busy machine; given ``minutes``, wait so long at most until it is quiet.

    Raises SqueezeError when it still is busy after so many minutes.
    """
    found = look()
    if minutes is None:
        if found.is_busy:
            _say(f"warning: {found}; what is timed meanwhile is slower and may be flagged `contended`")
            _say("         stop them, or let --quiet-machine MINUTES wait for them to end")
        return
    end, quiet = clock() + 60 * minutes, 0
    if found.is_busy:
        _say(f"waiting for a quiet machine, {minutes:g} min at most: {found}")
    while found.is_busy or (quiet := quiet + 1) < QUIET_LOOKS:
        if found.is_busy and clock() >= end:
            raise SqueezeError(
                f"--quiet-machine {minutes:g}: {found}, at most {load.USED:g} and {load.WAITED:.0%} are quiet; "
                "stop them, or run without this option"
            )
        sleep(POLL)
        quiet, found = quiet if not found.is_busy else 0, look()


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
