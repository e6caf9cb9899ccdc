"""Set measured perplexities beside published ones. Imports no torch.

A number is a row's counterpart where the model's source and the technique are the same, and every setting that was
published of it is the row's: of the step, of the text and windows of perplexity and, where the row is calibrated, of
calibration, and the versions of the harness. What was not published is not compared, and said to be so. Labels do not
count: two models of one name may have other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from squeeze.boards.table import table
from squeeze.core import paths
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell
from squeeze.request.plain_yaml import read_plain

PAPER = "_paper"  # ends the name of a technique in the settings of its paper: gptq_paper is gptq with other settings
CALIBRATION = ("corpus", "samples", "window")
HARNESS = "harness"

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """Hold a perplexity that others have published.

    model: where it comes from (``hf:facebook/opt-125m``). tolerance: share of the value by which a measured one may
    differ. What was published of how it came about: step, fields of the technique's step; protocol, fields of the
    protocol's perplexity; calibration, its fields; harness, versions of libraries (``lm-eval: 0.4.9``).
    """

    model: str
    technique: str
    value: float
    tolerance: float
    source: str
    step: Settings
    protocol: Settings
    calibration: Settings = field(default_factory=dict)
    harness: Settings = field(default_factory=dict)

    def settings(self, calibrated: bool) -> dict[str, Any]:
        """Return all that was published, by names such as ``group_size`` and ``perplexity.window``.

        calibrated: whether calibration counts.
        """
        parts = {"perplexity": self.protocol, HARNESS: self.harness}
        parts |= {"calibration": self.calibration} if calibrated else {}
        return {**self.step, **{f"{part}.{name}": value for part in parts for name, value in parts[part].items()}}


@dataclass(frozen=True)
class Measured:
    """Hold a perplexity of ours: its cell, and the versions of the libraries that it was scored with."""

    cell: Cell
    versions: Mapping[str, str] = field(default_factory=dict)

    def setting(self, name: str) -> Any:
        """Return our value of a setting that a number names; None where we have none."""
        part, _, field_name = name.rpartition(".")
        if not part:
            return self.cell.axis(name)
        found = {"perplexity": self.cell.protocol.get("perplexity", {}), HARNESS: self.versions}
        return found.get(part, self.cell.calibration).get(field_name)

    def unstated(self, number: Published) -> list[str]:
        """Name what our row has settings of, and the number has not."""
        own = [name for step in self.cell.technique["steps"] for name in step if name != "_target_"]
        own += [f"calibration.{name}" for name in CALIBRATION if self.cell.calibration]
        stated = number.settings(calibrated=bool(self.cell.calibration))
        return [name for name in own if name not in stated] + ([] if number.harness else [HARNESS])


@dataclass(frozen=True)
class Comparison:
    """Set a measured perplexity beside a published one. unstated: settings not published, so not compared."""

    cell: Cell
    measured: float
    published: Published
    unstated: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Return measured over published."""
        return self.measured / self.published.value

    @property
    def agrees(self) -> bool:
        """Tell whether the ratio is within the tolerance of 1."""
        return abs(self.ratio - 1) <= self.published.tolerance


@dataclass(frozen=True)
class Joined:
    """Hold comparisons, in the board's order; alone: rows without a counterpart, and why; unmeasured: numbers so."""

    comparisons: list[Comparison]
    alone: list[tuple[Cell, str]]
    unmeasured: list[Published]


def numbers(path: Path | None = None) -> list[Published]:
    """Read the numbers of a YAML file; None: of conf/literature.yaml.

    Raises SqueezeError where the file is not laid out as that one.
    """
    path = path or paths.conf() / "literature.yaml"
    try:
        return [Published(**number) for group in read_plain(path) for number in _numbers(group)]
    except (KeyError, TypeError) as error:
        raise SqueezeError(
            f"{path}: expected a list of source, model, protocol and numbers, each with technique, value, tolerance"
            f" and at most step, calibration and harness; {type(error).__name__}: {error}"
        ) from error


def _numbers(group: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the fields of each number of a group: what the group states holds for all that do not state it anew."""
    shared = {name: group[name] for name in ("source", "model", "protocol")}
    shared |= {name: group[name] for name in ("calibration", HARNESS) if name in group}
    for number in group["numbers"]:
        yield {"step": {}, **shared, **number}


def join(records: Iterable[Record], published: Sequence[Published]) -> Joined:
    """Set the ok rows of the table of the records, newest attempts only, beside what was published of them."""
    known = {record.attempt: record for record in records}
    comparisons: list[Comparison] = []
    alone: list[tuple[Cell, str]] = []
    for _, row in table(known.values()).iterrows():
        if row["status"] != Status.OK or pd.isna(row["perplexity"]):
            continue
        own = _measured(known[row["attempt"]])
        found, why = counterparts(own, published)
        figure = float(row["perplexity"])
        comparisons += [Comparison(own.cell, figure, number, tuple(own.unstated(number))) for number in found]
        alone += [] if found else [(own.cell, why)]
    joined = [comparison.published for comparison in comparisons]
    return Joined(comparisons, alone, [number for number in published if number not in joined])


def _measured(record: Record) -> Measured:
    return Measured(Cell.from_json(record.cell), record.environment.get("software", {}).get("versions", {}))


def counterparts(own: Measured, published: Sequence[Published]) -> tuple[list[Published], str]:
    """Return the numbers that were published of what we measured; where there is none, why not.

    The reason names each setting in which the nearest number (it differs in fewest) is another, with both values.
    """
    source, technique = own.cell.model.get("source"), own.cell.technique["name"]
    same_model = [number for number in published if number.model == source]
    if not same_model:
        return [], f"nothing is published here of {source}"
    same_technique = [number for number in same_model if number.technique == technique.removesuffix(PAPER)]
    if not same_technique:
        return [], f"nothing is published here of {technique} on this model"
    differing = [_differing(own, number) for number in same_technique]
    found = [number for number, unlike in zip(same_technique, differing, strict=True) if not unlike]
    return found, "" if found else _in_words(min(differing, key=len))


def _differing(own: Measured, number: Published) -> dict[str, tuple[Any, Any]]:
    """Return each setting that was published of a number and is not ours: (published, measured)."""
    stated = number.settings(calibrated=bool(own.cell.calibration))
    pairs = {name: (value, own.setting(name)) for name, value in stated.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    theirs = ", ".join(f"{name} {_plain(value)}" for name, (value, _) in differing.items())
    ours = ", ".join(_plain(value) for _, value in differing.values())
    return f"published with {theirs}, measured with {ours}"


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
