"""Take in questions of the user's own: data alone, so that no code of theirs and no template is ever run.

``file:PATH`` among a protocol's tasks names a file of JSON lines, one a question:

    {"context": "Rome is in", "choices": [" Italy", " Spain"], "gold": 0}

A choice follows its context as it stands, with the space that it carries; ``gold`` is the right one's number. In cells
the task is called ``own_TITLE_HASH``, by its content: another content is another task, and the file is needed no more.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from squeeze.core import cache
from squeeze.core.errors import SqueezeError, TransientError, shown
from squeeze.core.given import read_given
from squeeze.sources.own_text import FILE, title

NAME = re.compile(r"own_\w+_([0-9a-f]{16})")
LARGEST = 16 * 2**20  # bytes: more questions than anyone scores, and read in seconds
LONGEST_TITLE = 24  # characters
MOST_CHOICES = 100
FIELDS = {"context", "choices", "gold"}


def taken_in(task: str) -> str:
    """Return the name that a cell has for a task: of ``file:PATH``, whose questions are kept, ``own_TITLE_HASH``.

    Any other name is its own. Raises SqueezeError, with the line, for a file that holds anything but questions.
    """
    if not task.startswith(FILE):
        return task
    path = Path(task.removeprefix(FILE)).expanduser().absolute()
    content = read_given(path, LARGEST)
    questions = [_question(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not questions:
        raise SqueezeError(f'{path}: no questions, expected lines such as {{"context": "", "choices": [], "gold": 0}}')
    whole = hashlib.sha256(json.dumps(questions).encode()).hexdigest()
    name = f"own_{re.sub(r'[^A-Za-z0-9]+', '_', title(task))[:LONGEST_TITLE].strip('_') or 'task'}_{whole[:16]}"

    def write(folder: Path) -> None:
        (folder / "requests.jsonl.gz").write_bytes(_packed(questions))

    cache.sealed(_place(name), write)
    return name


def is_own(task: str) -> bool:
    """Tell whether a task's questions were taken in."""
    return NAME.fullmatch(task) is not None


def path(task: str) -> Path:
    """Return the file of a task that was taken in, laid out as those of ``squeeze.sources.tasks`` are."""

    def lost(_: Path) -> None:
        raise TransientError(f"the questions of {task} are in the cache no more; name their file again, as file:PATH")

    return cache.sealed(_place(task), lost) / "requests.jsonl.gz"


def _place(name: str) -> str:
    return f"corpora/questions-{name[-16:]}"


def _question(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SqueezeError(f"{path}:{number}: not readable as JSON in UTF-8 ({shown(str(error))})") from error
    if not isinstance(found, dict) or found.keys() != FIELDS:
        raise SqueezeError(f"{path}:{number}: {shown(found)}, expected an object of {', '.join(sorted(FIELDS))}")
    context, choices, gold = found["context"], found["choices"], found["gold"]
    texts = choices if isinstance(choices, list) else []
    if not (1 < len(texts) <= MOST_CHOICES and all(isinstance(text, str) and text for text in texts)):
        raise SqueezeError(f"{path}:{number}: choices {shown(choices)}, expected a list of 2 to {MOST_CHOICES} texts")
    if not isinstance(context, str) or not context:
        raise SqueezeError(f"{path}:{number}: context {shown(context)}, expected a text")
    if type(gold) is not int or not 0 <= gold < len(texts):
        raise SqueezeError(f"{path}:{number}: gold {shown(gold)}, expected a choice's number, 0 to {len(texts) - 1}")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SqueezeError(f"{path}:{number}: half a character ({error.reason}); write it whole") from error
    return {"context": context, "choices": texts, "gold": gold}


def _packed(questions: list[dict[str, Any]]) -> bytes:
    """Lay questions out as the package of the other tasks does: a line for each choice, compressed."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        for line in _requests(questions):
            file.write(json.dumps(line).encode() + b"\n")
    return buffer.getvalue()


def _requests(questions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, question in enumerate(questions):
        for choice in question["choices"]:
            request = {"context": question["context"], "continuation": choice}
            yield {"doc_id": number, "request": request, "label": question["gold"]}
