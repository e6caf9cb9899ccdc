"""Define a record: all that is known of one attempt at one cell. Standard library and msgspec only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from squeeze.core.errors import IntegrityError
from squeeze.records import schema
from squeeze.records.sanitize import STEERS, line
from squeeze.records.schema import Amount, Answers, Count, Key, Loss, Moment, Name, Seconds, Share, Word
from squeeze.request.cell import Cell

SCHEMA = 2
BESIDE = "beside"  # in a record's environment: the fingerprint of what it was compared with, where that is another one
READABLE = (1, 2)  # 1 had fewer columns, and intervals from shorter token blocks
NEEDED = ("cell", "key", "environment", "estimates", "block_nll", "flags")  # of a record, whatever its age
PROCESS = "process"  # the isolation of official records: each measurement in a process of its own
RECORD_BLOCKS = 128  # of mean token losses in a record, at most: what ranking needs of them, in a kilobyte
MOST_ITEMS = 8192  # answers of a classifier in a record, at most: two kilobytes
CONTENDED = "contended"  # flag: other work competed for the processor, which slows some kernels more than others
UNSTEADY = "unsteady"  # flag: half the processes or more did not settle; it informs, intervals hold what it costs
WARMING = "warming"  # flag: every process moved the same way from start to end, so a time supports no verdict
GRID_FLATTERED = "grid_flattered"  # flag: the baseline's weights lay on a grid that this artifact's codes fall on
IMPLAUSIBLE = "implausible"  # flag: better on the text than its distance from the uncompressed model allows; unranked
NOT_REALISED = "claimed != realised"  # flag: a recount found other than what the technique claims
DECODES_OTHERWISE = "decode != score"  # flag: the tokens that were timed are not those that the scored model chooses
NOT_CAUSAL = "not causal"  # flag: later tokens move the scores of earlier ones, so perplexity says nothing
ENCODES_OTHERWISE = "encode != score"  # flag: a classifier that was timed answers otherwise than the scored one
# Flags of rows whose quality is not believed, or not that of the model whose speed they show.
UNRANKED = (IMPLAUSIBLE, DECODES_OTHERWISE, NOT_CAUSAL, ENCODES_OTHERWISE)


class Status(StrEnum):
    """Name how an attempt ended; each attempt ends in exactly one of these."""

    OK = "ok"
    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    DIVERGED = "diverged"
    INVALID = "invalid"


class Row(NamedTuple):
    """Identify a row of a board: attempts that agree in all three are attempts at one thing.

    key: the request's; artifact_key: of what is measured; fingerprint: of where it is measured.
    """

    key: str
    artifact_key: str
    fingerprint: str


@dataclass(frozen=True)
class Estimate:
    """Hold a figure with its 95 % interval (or observed spread, where the field's documentation says so).

    ``low``, ``high`` and ``p_value`` are None where the protocol's sample count cannot support them;
    ``n`` is the number of independent units (rounds, windows, items) behind the value.
    """

    value: Amount
    low: Amount | None = None
    high: Amount | None = None
    p_value: Share | None = None
    n: Count | None = None

    def to_json(self) -> dict[str, float | int]:
        """Return the fields that are known."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Record:
    """Hold one attempt: the schema of ``results/records/*.json`` (docs/record.md explains each field).

    The types say what a file may hold, and are checked as it is read (`squeeze.records.schema`).
    """

    cell: Mapping[str, Any]
    key: Word
    artifact_key: Key
    fingerprint: Word
    status: Status
    attempt: Name
    started: Moment
    finished: Moment
    artifact_hash: Word | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    stage: Word = ""
    estimates: Mapping[Name, Estimate] = field(default_factory=dict)
    claimed: Mapping[str, Any] = field(default_factory=dict)
    realised: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[Name, Seconds] = field(default_factory=dict)
    block_nll: tuple[Loss, ...] = ()
    item_correct: Answers = ""
    flags: tuple[Word, ...] = ()
    samples: Mapping[str, str] = field(default_factory=dict)
    isolation: Word = PROCESS
    log_tail: str = ""
    schema: int = SCHEMA

    @property
    def row(self) -> Row:
        """Return the row that this is an attempt at."""
        return Row(self.key, self.artifact_key, self.fingerprint)

    @property
    def beside(self) -> str:
        """Return the fingerprint of the rows that it was timed beside, and may be compared with.

        A row of another runtime than eager has that of the eager one; before runtimes shared rounds it had its own.
        """
        return str(self.environment.get(BESIDE, self.fingerprint))

    @property
    def precedence(self) -> tuple[bool, str, str]:
        """Return the rank among attempts at one row; the greatest counts: official before shared, then newer ones."""
        return self.isolation == PROCESS, self.finished, self.attempt

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, from which ``from_json`` makes an equal record."""
        shallow = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if not self.item_correct:  # as records of language models have always been
            del shallow["item_correct"]
        return {
            **shallow,
            "status": str(self.status),
            "estimates": {name: estimate.to_json() for name, estimate in self.estimates.items()},
            "block_nll": list(self.block_nll),
            "flags": list(self.flags),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Return the record that ``to_json`` described.

        Out of ``reason`` and ``log_tail``, which quote what others said, what would steer a terminal is taken.

        Raises IntegrityError when the data is no record of a readable schema, a field is of another kind than its
        readers take for granted, its cell no cell, or its key not the cell's: the caller reports the file and goes on.
        """
        if not isinstance(data, Mapping) or data.get("schema") not in READABLE:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise IntegrityError(f"not a record of schema {' or '.join(map(str, READABLE))} (found {found!r})")
        try:
            if not data.keys() <= FIELDS:
                raise ValueError(f"no field {min(data.keys() - FIELDS)!r} is known")
            if missing := [name for name in NEEDED if name not in data]:
                raise ValueError(f"its {missing[0]} is missing")
            if not all(estimate.keys() <= ESTIMATE_FIELDS for estimate in data["estimates"].values()):
                raise ValueError(f"an estimate has a field other than {', '.join(sorted(ESTIMATE_FIELDS))}")
            found = msgspec.convert(data, cls)
            schema.check(found)
            _check_cell(found.cell, found.key)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise IntegrityError(f"not a valid record: {schema.in_words(error)}") from error
        return found._printable()

    def _printable(self) -> Record:
        if not STEERS.search(self.reason + self.log_tail):
            return self
        tail = "\n".join(map(line, self.log_tail.splitlines()))
        return replace(self, reason=line(self.reason), log_tail=tail)


FIELDS, ESTIMATE_FIELDS = (frozenset(entry.name for entry in fields(kind)) for kind in (Record, Estimate))


def counting(records: Iterable[Record]) -> dict[Row, Record]:
    """Return the record that counts of each row: of its attempts, the one of greatest precedence."""
    found: dict[Row, Record] = {}
    for record in records:
        known = found.get(record.row)
        if known is None or known.precedence <= record.precedence:
            found[record.row] = record
    return found


def _check_cell(data: Mapping[str, Any], key: str) -> None:
    """Raise IntegrityError, or what reading nonsense raises, unless ``data`` is a cell's JSON whose key is ``key``."""
    cell = Cell.from_json(data)
    label, _ = cell.label, cell.training  # these read the rest of what a cell needs
    if cell.key != key:
        raise IntegrityError(f"its key is {key!r}, that of its cell {label!r} is {cell.key!r}: one of them was changed")
