"""Keep records: one JSON file per attempt, whole or not there, and its raw samples beside it.

    records/<label>-<attempt>.json   at most 16 KB
    records/<label>-<attempt>.npz    raw samples; the record names their sha256
    logs/<label>-<attempt>.log       what the attempt's processes printed

Many runners may write to one folder, also on a shared file system: names are unique, no lock is held, nothing is
ever rewritten or deleted; what is no record is named and passed over. Standard library and msgspec only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from squeeze.core.disk import is_full_disk
from squeeze.core.errors import IntegrityError, SqueezeError, TransientError
from squeeze.core.files import read_small, write_atomically
from squeeze.records.record import Record
from squeeze.records.sanitize import line
from squeeze.request.cell import Cell

LARGEST_RECORD = 16_384  # bytes: 100,000 records stay readable in seconds
LARGEST_SAMPLES = 64 * 2**20  # bytes, packed and unpacked: those of a text of two million tokens

Report = Callable[[Path, str], None]


def warn(path: Path, why: str) -> None:
    """Name on stderr a file that is passed over."""
    print(line(f"warning: {path} is passed over: {why}"), file=sys.stderr)


@dataclass(frozen=True)
class RecordStore:
    """Keep the records below a results folder."""

    results: Path

    @property
    def folder(self) -> Path:
        """Return the folder where the records lie."""
        return self.results / "records"

    def prepare(self) -> None:
        """Make the folders. Raises SqueezeError, before any work is done, when they cannot be written to."""
        try:
            for folder in (self.folder, self.results / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
        except OSError as error:
            raise SqueezeError(
                f"results folder {self.results} is not writable ({error.strerror}); choose another with --results"
            ) from error

    def log(self, cell: Cell, attempt: str) -> Path:
        """Return the log file of an attempt."""
        return self.results / "logs" / f"{stem(cell, attempt)}.log"

    def write(self, record: Record, samples: bytes = b"") -> Record:
        """Keep a record, its samples (an .npz file's bytes) first; returns the record as written, naming them.

        When this returns, both files are on the disk. Raises TransientError when the disk is full or the folder gone;
        then neither a torn record nor one without its samples is left. Raises ValueError as ``encode`` does, and for
        samples that are too large to be read.
        """
        name = stem(Cell.from_json(record.cell), record.attempt)
        if len(samples) > LARGEST_SAMPLES:
            raise ValueError(f"samples of {len(samples):,} bytes, expected at most {LARGEST_SAMPLES:,}: keep fewer")
        try:
            if samples:
                write_atomically(self.folder / f"{name}.npz", samples)
                found = {"file": f"{name}.npz", "sha256": hashlib.sha256(samples).hexdigest()}
                record = replace(record, samples=found)
            write_atomically(self.folder / f"{name}.json", encode(record))
            _flush_folder(self.folder)
        except OSError as error:
            advice = "free some space" if is_full_disk(error) else "check the folder"
            raise TransientError(
                f"record of {name} could not be written to {self.folder} ({error.strerror}); {advice}, "
                "then `squeeze resume` measures what is missing"
            ) from error
        return record

    def records(self, report: Report = warn) -> Iterator[Record]:
        """Yield all readable records in order of their names; ``report(path, why)`` hears of each file passed over."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield read(path)
            except IntegrityError as error:
                report(path, str(error))

    def require(self, report: Report = warn) -> Iterator[Record]:
        """Yield what ``records`` yields. Raises SqueezeError when that is not one record."""
        found = False
        for record in self.records(report):
            found = True
            yield record
        if not found:
            raise self.empty()

    def empty(self) -> SqueezeError:
        """Return the error to raise where a record is needed and there is none."""
        return SqueezeError(f"no record in {self.results}: expected records/*.json there; `squeeze run` makes them")

    def samples(self, record: Record) -> Path:
        """Return the record's samples file. Raises IntegrityError as ``sample_bytes`` does."""
        self.sample_bytes(record)
        return self._samples(record)

    def sample_bytes(self, record: Record) -> bytes:
        """Return the content of the record's samples file (see `squeeze.records.arrays`).

        Raises IntegrityError when it is missing, no file, too large, or not what the record says.
        """
        path = self._samples(record)
        if not path.name:
            raise IntegrityError(f"samples of attempt {record.attempt} are missing: its record names none")
        try:
            content = read_small(path, LARGEST_SAMPLES)
        except FileNotFoundError as error:
            raise IntegrityError(f"{path.name} of attempt {record.attempt} is missing from {self.folder}") from error
        except IntegrityError as error:
            raise IntegrityError(f"{path.name} {error}") from error
        except OSError as error:
            raise IntegrityError(f"{path.name} is not readable: {error.strerror}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != record.samples["sha256"]:
            raise IntegrityError(f"{path.name} has sha256 {found}, its record says {record.samples['sha256']}")
        return content

    def _samples(self, record: Record) -> Path:
        return self.folder / Path(record.samples.get("file", "")).name


def read(path: Path) -> Record:
    """Return one record. Raises IntegrityError for a truncated or foreign file, and for what is no file."""
    return decode(file_bytes(path))


def file_bytes(path: Path) -> bytes:
    """Return the bytes of a record's file. Raises IntegrityError for what is no file, too large, or not to be read."""
    try:
        return read_small(path, LARGEST_RECORD)
    except OSError as error:
        raise IntegrityError(f"not readable: {error.strerror}") from error


def decode(content: bytes) -> Record:
    """Return the record that ``encode`` wrote. Raises IntegrityError when the content is truncated or foreign."""
    try:
        return Record.from_json(msgspec.json.decode(content))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"not readable as JSON: {line(str(error))}") from error


def encode(record: Record) -> bytes:
    """Return the record's JSON. Raises ValueError when it could not be read again: mistakes of its author.

    It is above 16 KB, holds NaN, or a field that is not as the schema says.
    """
    content = json.dumps(record.to_json(), separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    if len(content) > LARGEST_RECORD:
        raise ValueError(
            f"record of {len(content)} bytes, expected at most {LARGEST_RECORD}: put lists into the samples"
        )
    try:
        decode(content)
    except IntegrityError as error:
        raise ValueError(str(error)) from error
    return content


def stem(cell: Cell, attempt: str) -> str:
    """Return the name that an attempt's files share: readable, unique, and safe on every file system."""
    label = re.sub(r"[^\w.+-]", "_", cell.label).lstrip(".")
    return f"{label[:100]}-{attempt}"


def _flush_folder(folder: Path) -> None:
    """Put the folder's new names on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
