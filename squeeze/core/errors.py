"""Define the errors that a user may meet; a message is one line: what was wrong, what was expected, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_NAMED = 60  # choices in one message
LONGEST_VALUE = 120  # characters of a value in a message
PENDING = 75  # exit code (sysexits.h: EX_TEMPFAIL) when cells are left that `squeeze resume` measures


class SqueezeError(Exception):
    """Say that a request cannot be served as it stands. The command line prints it and exits with code 2."""


class Unsupported(SqueezeError):  # noqa: N818 - it is an answer, not a mistake
    """Say that a technique cannot do what was asked: why, and what would work."""


class IntegrityError(SqueezeError):
    """Say that a file is not what its hash or its format promises: corrupt, truncated or replaced."""


class TransientError(SqueezeError):
    """Say that the environment failed, which is no verdict on what was asked: once that is mended, it can go on."""


def hint(word: object, known: Iterable[str]) -> str:
    """End an error message: "did you mean 'rtn'?" for a near miss, else what there is to choose from."""
    names = sorted(known)
    listed = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED:,} more" if names[MOST_NAMED:] else "")
    near = get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"choose from: {listed}" if names else "there is none to choose from"


def shown(value: object) -> str:
    """Return a value as a message names it: its repr, cut short where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text):,} characters)"
