"""Check whether the records of a results folder, and what lies beside them, can be what they say (``squeeze verify``).

Found are files that are no records, samples and artifacts that are not those recorded, an attempt that is there twice,
figures that no measurement gives, leaks, and leaderboards that are not of these records. With ``deep`` also figures
that the raw samples do not bear out, and artifacts that were changed in the cache: these take tens of milliseconds a
record and seconds a gigabyte. Several attempts at one cell are no mistake: it is said which one counts.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from squeeze.artifacts import keys
from squeeze.audit.plausible import impossible
from squeeze.audit.recompute import disagreements
from squeeze.boards import leaderboard
from squeeze.boards.table import table
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.files import read_small
from squeeze.records.arrays import load
from squeeze.records.record import Record, Row, Status
from squeeze.records.sanitize import leaks, line
from squeeze.records.store import RecordStore, decode, file_bytes
from squeeze.request.cell import Cell

SHA256 = re.compile(r"[0-9a-f]{64}")
MALFORMED = (TypeError, ValueError, KeyError, IndexError, AttributeError)
LARGEST_BUILD_INFO = 2**20  # bytes
SHOWN = 12  # digits of a hash or an attempt: enough to find it


def verify(results: Path, deep: bool = False) -> int:
    """Print what is wrong with a results folder, a line each; returns 0 when nothing is, else 1.

    deep: recompute every figure from its raw samples, and hash the artifacts that are in the cache.
    Raises SqueezeError when there is not one record to verify.
    """
    console = Console(highlight=False, soft_wrap=True)
    folder = _Folder(RecordStore(results), deep)
    count = 0
    for name, what in folder.findings():
        console.print(Text.assemble((line(name), "bold"), f": {line(what)}"))
        count += 1
    for note in folder.notes():
        console.print(Text(line(note), style="dim"))
    console.print(f"{folder.records} records, {count or 'no'} finding{'' if count == 1 else 's'}")
    return int(count > 0)


@dataclass
class _Folder:
    """Verify a results folder, and remember what is needed of the records seen so far."""

    store: RecordStore
    deep: bool
    records: int = 0
    files: dict[str, str] = field(default_factory=dict)  # attempt -> file name
    builds: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)  # artifact, machine -> hash, file name
    cached: dict[str, str | None] = field(default_factory=dict)  # artifact key -> hash of what the cache holds
    rows: dict[Row, list[tuple[bool, str, str, str]]] = field(default_factory=lambda: defaultdict(list))

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield file names and what is wrong with them."""
        for path in sorted(self.store.folder.glob("*.json")):
            self.records += 1
            for what in self._file(path):
                yield path.name, what
        if not self.records:
            raise self.store.empty()
        yield from self._leaderboards()

    def notes(self) -> Iterator[str]:
        """Say which attempt counts, where a row has several."""
        for attempts in self.rows.values():
            if len(attempts) > 1:
                _, finished, used, label = max(attempts)
                yield f"{label}: {len(attempts)} attempts; that which counts is {used[:SHOWN]} of {finished}"

    def _file(self, path: Path) -> Iterator[str]:
        try:
            whole = file_bytes(path)
            record = decode(whole)
            yield from self._twice(record, path.name)
            yield from impossible(record)
            yield from leaks(record, whole.decode())
            yield from self._artifact(record, path.name)
            yield from self._samples(record, path)
        except (IntegrityError, OSError) as error:
            yield str(error)
        except MALFORMED as error:
            yield f"is not as the schema says: {type(error).__name__}: {error}"

    def _twice(self, record: Record, name: str) -> Iterator[str]:
        first = self.files.setdefault(record.attempt, name)
        if first != name:
            yield f"is attempt {record.attempt[:SHOWN]}, as {first} is: delete one"
        elif record.status is Status.OK:
            label = Cell.from_json(record.cell).label
            self.rows[record.row].append((*record.precedence, label))

    def _artifact(self, record: Record, name: str) -> Iterator[str]:
        if not SHA256.fullmatch(record.artifact_key):
            yield f"its artifact_key {record.artifact_key[:SHOWN]!r} is no sha256"
            return
        if record.artifact_hash is None:
            return
        build = (record.artifact_key, record.fingerprint)
        expected, other = self.builds.setdefault(build, (record.artifact_hash, name))
        if expected != record.artifact_hash:
            yield f"its artifact is {record.artifact_hash[:SHOWN]}, the same one is {expected[:SHOWN]} in {other}"
        found = self._cached(record.artifact_key)
        if found not in (None, record.artifact_hash):
            yield f"its artifact is {record.artifact_hash[:SHOWN]}, the one in the cache {str(found)[:SHOWN]}"

    def _cached(self, key: str) -> str | None:
        """Return the hash of a cached artifact, as its build says or, with ``deep``, as it is; None for none."""
        if key not in self.cached:
            artifact = keys.folder(key)
            self.cached[key] = _content_hash(artifact, self.deep) if artifact.is_dir() else None
        return self.cached[key]

    def _samples(self, record: Record, path: Path) -> Iterator[str]:
        if not record.samples:
            return
        if Path(record.samples["file"]).stem != path.stem:
            yield f"its samples are those of another file, {record.samples['file']}"
        if not self.deep:
            self.store.samples(record)
            return
        try:
            yield from disagreements(record, load(self.store, record))
        except MALFORMED as error:
            yield f"its samples do not fit together: {type(error).__name__}: {error}"

    def _leaderboards(self) -> Iterator[tuple[str, str]]:
        paths = [path for path in sorted(self.store.results.glob("leaderboard*")) if path.suffix in (".csv", ".md")]
        if not paths:
            return
        try:
            asked = leaderboard.terms_of(self.store.results)
            expected = leaderboard.texts(table(map(asked.applied, self.store.records(lambda *_: None)), asked.margins))
        except (*MALFORMED, SqueezeError) as error:
            yield paths[0].name, f"these records cannot be collated: {type(error).__name__}: {error}"
            return
        for path in paths:
            if not _holds(path, expected.get(path.name, b"")):
                yield path.name, "is not what `squeeze collate` makes of these records; collate again"


def _content_hash(artifact: Path, deep: bool) -> str:
    if deep:
        from squeeze.artifacts.format import content_hash  # torch: seconds

        return content_hash(artifact)
    return str(json.loads(read_small(artifact / keys.BUILD_INFO, LARGEST_BUILD_INFO))["content_hash"])


def _holds(path: Path, expected: bytes) -> bool:
    """Tell whether a file holds these bytes, one or more; of another length, it is not read."""
    try:
        return bool(expected) and read_small(path, len(expected)) == expected
    except (IntegrityError, OSError):
        return False
