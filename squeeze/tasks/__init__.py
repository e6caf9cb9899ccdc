"""lm-eval tasks over local data: one YAML each, and the loader that reads the pinned packages."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """The tasks and perplexity texts that a protocol may name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
