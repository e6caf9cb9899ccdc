"""Docstrings say with a verb what a thing does: ruff's D401 judges functions, this judges modules and classes, too."""

import ast
from collections.abc import Iterator

import pytest

from squeeze.core.paths import PACKAGE

# With these a noun or a riddle begins, not a verb.
NO_VERBS = frozenset(
    {"a", "an", "the", "what", "which", "who", "whose", "whether", "where", "how", "when", "why", "one", "all", "each"}
    | {"every", "our", "no", "of", "from", "to", "in", "on", "at", "for", "with", "by", "its", "it", "those", "these"}
    | {"that", "this", "same", "other", "some", "any", "none", "there"}
)


def first_words() -> Iterator[tuple[str, str]]:
    """Yield the place and the first word of every docstring of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 1)}", text.split(maxsplit=1)[0]


def begins_with_a_verb(word: str) -> bool:
    word = word.rstrip(",:;.")
    return (
        word.isalpha()
        and word.istitle()
        and word.lower() not in NO_VERBS
        and not (word.endswith("ing") and len(word) > 5)
    )


@pytest.mark.parametrize("word", ["The", "What", "``x``", "(rows,", "y", "Finding", "How", "sha256"])
def test_what_is_no_verb_is_found(word: str) -> None:
    assert not begins_with_a_verb(word)


def test_every_docstring_begins_with_a_verb() -> None:
    found = list(first_words())
    assert len(found) > 900
    assert [place for place, word in found if not begins_with_a_verb(word)] == []
