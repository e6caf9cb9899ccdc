"""Turn a name that nobody knows into a hint at the one that was meant. Standard library only."""

from collections.abc import Iterable
from difflib import get_close_matches


def hint(word: object, known: Iterable[str]) -> str:
    """The end of an error message: "did you mean 'rtn'?" for a near miss, else what there is to choose from."""
    names = sorted(known)
    near = get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"choose from: {', '.join(names)}" if names else "there is none to choose from"
