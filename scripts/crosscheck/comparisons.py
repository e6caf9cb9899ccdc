"""Read what is compared with what from comparisons.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

COMPARISONS = Path(__file__).with_name("comparisons.yaml")
OURS = "ours"


@dataclass(frozen=True)
class Trial:
    """Hold one way to quantize. library: "ours", or that of a module ``with_LIBRARY``; options: of its ``quantize``.

    form: the same in words, with what the library's defaults add.
    """

    library: str
    options: Mapping[str, Any]
    form: str = field(default="", compare=False)

    @property
    def request(self) -> str:
        """Return the options in one line; of ours, Hydra's own."""
        if self.library == OURS:
            return str(self.options["request"])
        return " ".join(f"{name}={value}" for name, value in self.options.items())

    @property
    def name(self) -> str:
        """Return the name that its results are filed under, such as ``hqq bits=4 group_size=64``."""
        return f"{self.library} {self.request}"


UNCOMPRESSED = Trial(OURS, {"request": "technique=none"})


@dataclass(frozen=True)
class Comparison:
    """Pair one of our trials with one of another library. note: what a difference comes from, where that is known."""

    ours: Trial
    theirs: Trial
    note: str = ""


def comparisons(path: Path = COMPARISONS) -> list[Comparison]:
    """Return each pair that the file lists, in its order."""
    return [
        Comparison(
            Trial(OURS, {"request": entry["ours"]}, entry["form"]),
            Trial(theirs["library"], theirs["options"], theirs["form"]),
            theirs.get("note", ""),
        )
        for entry in yaml.safe_load(path.read_bytes())["comparisons"]
        for theirs in entry["theirs"]
    ]


def trials(words: Sequence[str] = ()) -> dict[str, Trial]:
    """Return the trials to run by name, each once.

    The uncompressed model comes first, then both sides of the pairs of which one's name holds all words.
    """
    pairs = [(pair.ours, pair.theirs) for pair in comparisons()]
    wanted = [pair for pair in pairs if any(all(word in trial.name for word in words) for trial in pair)]
    return {trial.name: trial for trial in (UNCOMPRESSED, *(trial for pair in wanted for trial in pair))}
