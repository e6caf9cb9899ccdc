"""Hash what tasks and texts are scored on, as it lies here now: a pin says what it should be. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256 as new_hash
from pathlib import Path
from typing import Any

import yaml

from squeeze.core.errors import SqueezeError
from squeeze.core.hashing import digest, sha256
from squeeze.sources import classification, corpora, own_questions, tasks, wheels

SOURCES = ("dataset_path", "dataset_name", "dataset_kwargs")  # keys of a task that may name files


class _Loader(yaml.SafeLoader):
    """Read a task without running its functions."""


_Loader.add_constructor("!function", lambda _, node: str(node.value))


def hashes(names: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of the questions or labelled texts of each task, and of each text (corpus), by name.

    What is not here yet is fetched. Raises SqueezeError and IntegrityError as fetching does.
    """
    asked = {f"task {name}": _of_task(name) for name in sorted(set(names))}
    read = {f"text {name}": new_hash(corpora.text(name).encode()).hexdigest() for name in sorted(set(texts))}
    return asked | read


def _of_task(name: str) -> str:
    if name in classification.SETS:
        return classification.content_hash(name)
    if own_questions.is_own(name):
        return sha256(own_questions.path(name))
    settings = _settings(tasks.FOLDER / f"{name}.yaml")
    arguments = settings.get("dataset_kwargs") or {}
    if "member" in arguments:
        return sha256(wheels.member(*tasks.QUESTIONS, arguments["member"], arguments.get("sha256")))
    words = [settings[key] for key in SOURCES if key in settings]
    return digest([[file.name, sha256(file)] for word in _words(words) for file in _files(Path(word))])


def _settings(path: Path) -> dict[str, Any]:
    """Return what a task's file says, over what the file that it includes says."""
    try:
        own = yaml.load(path.read_bytes(), _Loader) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SqueezeError(f"task {path.name} cannot be read: {' '.join(str(error).split())}; mend the file") from error
    return {**(_settings(path.parent / own["include"]) if "include" in own else {}), **own}


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _words(each)
    elif isinstance(value, list):
        for each in value:
            yield from _words(each)


def _files(path: Path) -> list[Path]:
    """Return the file at a path, or all files in the folder there; nothing where there is neither."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
