"""Published numbers, and which measured row is the counterpart of which. Imports no torch.

A number is a row's counterpart where the model's source, the technique, the fields of its step and the text and windows
of its perplexity are the same. Labels do not count: two models of one name may have other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from squeeze.boards.table import table
from squeeze.core import paths
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell
from squeeze.request.plain_yaml import vet


@dataclass(frozen=True)
class Published:
    """A perplexity that others have published.

    model: where it comes from (``hf:facebook/opt-125m``). step, protocol: fields of the technique's step and of the
    protocol's perplexity, with the values that were published. tolerance: share of the value by which a measured one
    may differ.
    """

    model: str
    technique: str
    value: float
    tolerance: float
    source: str
    step: Mapping[str, Any]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A measured perplexity beside a published one."""

    cell: Cell
    measured: float
    published: Published

    @property
    def ratio(self) -> float:
        """Measured over published."""
        return self.measured / self.published.value

    @property
    def agrees(self) -> bool:
        """Whether the ratio is within the tolerance of 1."""
        return abs(self.ratio - 1) <= self.published.tolerance


@dataclass(frozen=True)
class Joined:
    """comparisons: in the order of the board. alone: rows without a counterpart, and why. unmeasured: numbers so."""

    comparisons: list[Comparison]
    alone: list[tuple[Cell, str]]
    unmeasured: list[Published]


def numbers(path: Path | None = None) -> list[Published]:
    """The numbers of a YAML file; None: of conf/literature.yaml.

    Raises SqueezeError where the file is not laid out as that one.
    """
    path = path or paths.conf() / "literature.yaml"
    try:
        return [
            Published(group["model"], source=group["source"], protocol=group["protocol"], **{"step": {}, **number})
            for group in vet(path)
            for number in group["numbers"]
        ]
    except (KeyError, TypeError) as error:
        raise SqueezeError(
            f"{path}: expected a list of source, model, protocol and numbers, each with technique, value, tolerance"
            f" and at most step; {type(error).__name__}: {error}"
        ) from error


def join(records: Iterable[Record], published: Sequence[Published]) -> Joined:
    """The ok rows of the table of the records, newest attempts only, beside what was published of them."""
    records = list(records)
    cells = {record.attempt: Cell.from_json(record.cell) for record in records}
    comparisons: list[Comparison] = []
    alone: list[tuple[Cell, str]] = []
    for _, row in table(records).iterrows():
        if row["status"] != Status.OK or pd.isna(row["perplexity"]):
            continue
        cell = cells[row["attempt"]]
        found, why = counterparts(cell, published)
        comparisons += [Comparison(cell, float(row["perplexity"]), number) for number in found]
        alone += [] if found else [(cell, why)]
    measured = [comparison.published for comparison in comparisons]
    return Joined(comparisons, alone, [number for number in published if number not in measured])


def counterparts(cell: Cell, published: Sequence[Published]) -> tuple[list[Published], str]:
    """The numbers that were published of a cell; where there is none, why."""
    same_model = [number for number in published if number.model == cell.model["source"]]
    if not same_model:
        return [], f"nothing is published here of {cell.model['source']}"
    same_technique = [number for number in same_model if number.technique == cell.technique["name"]]
    if not same_technique:
        return [], f"nothing is published here of {cell.technique['name']} on this model"
    text = cell.protocol.get("perplexity", {})
    same_text, why = _same(same_technique, lambda number: number.protocol, text.get)
    return _same(same_text, lambda number: number.step, cell.axis) if same_text else ([], why)


def _same(
    published: Sequence[Published], fields: Callable[[Published], Mapping[str, Any]], own: Callable[[str], Any]
) -> tuple[list[Published], str]:
    """The numbers whose fields have our own values; where there is none, how the nearest one differs."""
    unlike = [[name for name, value in fields(number).items() if own(name) != value] for number in published]
    found = [number for number, names in zip(published, unlike, strict=True) if not names]
    nearest, names = min(zip(published, unlike, strict=True), key=lambda pair: len(pair[1]))
    theirs = ", ".join(f"{name} {_plain(fields(nearest)[name])}" for name in names)
    ours = ", ".join(_plain(own(name)) for name in names)
    return found, "" if found else f"the nearest published number has {theirs}; this row has {ours}"


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
