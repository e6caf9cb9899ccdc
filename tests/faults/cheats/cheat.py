"""What a planted cheat is: a technique of somebody's own, what it does to rank first, and what becomes of it.

Cheats of one kind share a file here (``evaluation_text.py``) and the test beside it runs them all
(``test_evaluation_text.py``); promise 16 counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

from squeeze.request.cell import Cell
from tests.faults.sweeps import MODEL, PROTOCOL, RUNTIME
from tests.plugins import install

PLUGIN = "cheats"
TECHNIQUE = """
from dataclasses import dataclass
from tempfile import mktemp
{top}
@dataclass(frozen=True)
class Cheat:
    def apply(self, subject, calibration):
{body}
"""

# refused: before anything is built; invalid: its row says so, and has no figures; effectless: it builds what it would
# have built without the cheat, or fails; implausible: its row is flagged and unranked.
Caught = Literal["refused", "invalid", "effectless", "implausible"]


@dataclass(frozen=True)
class Cheat:
    """A cheat. does: in words; body: of ``apply(self, subject, calibration)``; caught: how; words: of the reason.

    top: what stands above the class, and runs when it is imported.
    """

    name: str
    does: str
    body: str
    caught: Caught
    words: str = ""
    top: str = ""

    @property
    def cell(self) -> Cell:
        """A cell of the tiny model that uses it."""
        return cell({"_target_": f"{PLUGIN}:{self.name}.Cheat"}, self.name)


def cell(step: dict[str, Any], name: str = "honest", **changes: Any) -> Cell:
    """A cell of one step."""
    parts = {"model": {**MODEL, "dtype": "float32"}, "runtime": RUNTIME, "protocol": PROTOCOL, **changes}
    return Cell(technique={"name": name, "family": "made_up", "steps": [step]}, **parts)


def plant(cheats: Sequence[Cheat], site: Path) -> None:
    """Install the plugin of these cheats, a file each, into a folder of sys.path yet to be."""
    sources = {each.name: TECHNIQUE.format(top=each.top, body=indent(each.body.strip(), " " * 8)) for each in cheats}
    install(site, PLUGIN, {f"techniques/{name}.py": source for name, source in sources.items()})
