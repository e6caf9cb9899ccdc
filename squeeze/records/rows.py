"""Find rows by name, read them with their raw samples, and tell in what their conditions differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from squeeze.core.environment import differences, fingerprint
from squeeze.core.errors import SqueezeError, hint
from squeeze.records.arrays import load
from squeeze.records.record import Record, counting
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.request.labels import AT, Labelled, distinct


@dataclass(frozen=True)
class Side:
    """Hold a row: its record and its samples file's arrays (none for an attempt that failed before it had any)."""

    record: Record
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def cell(self) -> Cell:
        """Return the cell that was measured."""
        return Cell.from_json(self.record.cell)

    @classmethod
    def of(cls, store: RecordStore, record: Record) -> Side:
        """Return the record with its samples. Raises IntegrityError as `squeeze.records.arrays.load` does."""
        return cls(record, load(store, record))


def find(store: RecordStore, names: Collection[str]) -> dict[str, Record]:
    """Return the record that counts of the row that each name stands for: the newest official one.

    A name is a label, with or without that of the model, or the beginning of a key or an attempt. Where several cells
    share a label, what they differ in follows it: ``gptq-4-g64@samples=8``.

    Raises SqueezeError for a name that no row has, or several.
    """
    named: dict[str, list[Record]] = {name: [] for name in names}
    labels: set[str] = set()
    for record in store.records():
        cell = Cell.from_json(record.cell)
        known = {cell.label, cell.label.removeprefix(f"{cell.model['name']}-")}
        labels |= known
        for name, found in named.items():
            if name and (
                {name, name.partition(AT)[0]} & known or record.key.startswith(name) or record.attempt.startswith(name)
            ):
                found.append(record)
    return {name: _only(name, list(counting(found).values()), labels) for name, found in named.items()}


def called(records: Sequence[Record]) -> list[str]:
    """Return what each record's row is called beside the others: a label of its own."""
    return distinct([Labelled.of(Cell.from_json(record.cell)) for record in records])


def alike(one: Record, other: Record) -> bool:
    """Tell whether times of two records can be compared: what their fingerprints cover is the same.

    Where the fingerprints were computed by different versions of the rule, today's is applied to both.
    """
    if one.fingerprint == other.fingerprint:
        return True
    try:
        mine, theirs = (fingerprint(each.environment, each.cell["runtime"]) for each in (one, other))
    except KeyError:  # a record without its environment
        return False
    return mine == theirs


def unlike_environments(one: Record, other: Record) -> Iterator[str]:
    """Name the fields in which two records' environments differ, with both: ``software.kernel (6.1 and 6.2)``."""
    for name in differences(one.environment, other.environment):
        yield f"{name} ({_field(one.environment, name)} and {_field(other.environment, name)})"


def _only(name: str, found: list[Record], labels: set[str]) -> Record:
    if not found:
        raise SqueezeError(f"no record of {name!r}: {hint(name, labels)}")
    own = dict(zip((record.attempt for record in found), called(found), strict=True))
    if AT in name:
        found = [record for record in found if own[record.attempt].endswith(name)]
    if not found:
        raise SqueezeError(f"no record of {name!r}: {hint(name, own.values())}")
    if len(found) > 1:
        ways = ", ".join(f"{own[record.attempt]} is {record.attempt[:12]}" for record in found)
        raise SqueezeError(f"{name!r} stands for {len(found)} rows: name one by its attempt ({ways})")
    return found[0]


def _field(environment: Mapping[str, Any], name: str) -> Any:
    """Return the value of a dotted field, such as ``software.versions.torch``; None where it is not there."""
    value: Any = environment
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
