"""Share the cells of a results folder among the runs that work on it at the same time: each is measured by one of them.

A claim is a lock (flock) on a file that is named after the row, held from before the block starts until the record is
written. The kernel drops it at whatever end of its holder, so that a dead run claims nothing. Between processes of one
host that holds on every file system with locks; between hosts on one that hands flock to its server, as NFS and the
usual cluster file systems do when mounted with locks. Where there are none, two runs may measure the same cell, and
each writes a record of its own: that costs time, no result.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from squeeze.core.errors import IntegrityError
from squeeze.core.hashing import digest
from squeeze.records.record import PROCESS, Record, Row
from squeeze.records.store import RecordStore, read
from squeeze.request.cell import Cell
from squeeze.runner import rounds
from squeeze.runner.jobs.display import Display
from squeeze.runner.plan import row_of

FOLDER = "claims"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass
class Claims:
    """Claim cells for this run. known: names of the records that were there before it looked for what to do.

    place: the environment (``environment.describe``), of which a row's fingerprint is.
    """

    store: RecordStore
    place: Mapping[str, Any]
    display: Display
    known: Iterable[str]
    _answers: dict[Row, Record] = field(default_factory=dict)
    _held: dict[Row, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seen = set(self.known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop(list(self._held))

    def blocks(self, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """Yield the cells in blocks, each claimed until the next is asked for; what another run measures is left out.

        Those that another run holds when their turn comes are waited for at the end, and are this run's after all when
        it lets go of them without a record. Raises SqueezeError as ``row_of`` does.
        """
        rows = {cell.key: row_of(cell, self.place) for cell in cells}
        elsewhere: list[Cell] = []
        for block in rounds.blocks(cells):
            mine = [cell for cell in block if self._take(rows[cell.key])]
            elsewhere += [cell for cell in block if rows[cell.key] not in self._held]
            yield from rounds.blocks(self._unanswered(mine, rows))
            self._drop(list(self._held))
        while elsewhere := self._unanswered(elsewhere, rows):
            self.display.say(f"{len(elsewhere)} cells are another run's at the moment: waiting for it ...")
            for cell in elsewhere:
                self._take(rows[cell.key], wait=cell is elsewhere[0])
            mine = [cell for cell in elsewhere if rows[cell.key] in self._held]
            elsewhere = [cell for cell in elsewhere if rows[cell.key] not in self._held]
            yield from rounds.blocks(self._unanswered(mine, rows))
            self._drop(list(self._held))

    def _unanswered(self, cells: Iterable[Cell], rows: Mapping[str, Row]) -> list[Cell]:
        """Return the cells of which no record has come since this run began; say so of the others."""
        self._look()
        left = []
        for cell in cells:
            if (record := self._answers.get(rows[cell.key])) is None:
                left.append(cell)
            else:
                self.display.finish(cell, record, by="another run")
        return left

    def _look(self) -> None:
        """Read the records that are new; this run's own are among them, and asked for by none of its cells."""
        for path in self.store.folder.glob("*.json"):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                record = read(path)
            except IntegrityError:  # whoever reads records later names it
                continue
            if record.isolation == PROCESS:
                self._answers[record.row] = record

    def _take(self, row: Row, *, wait: bool = False) -> bool:
        """Claim a row; whether it is this run's now. wait: block until it is."""
        path = self.store.results / FOLDER / f"{digest(list(row))[:32]}.lock"
        path.parent.mkdir(exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _locked(descriptor, wait=wait):
                    os.close(descriptor)
                    return False
                current = _is_at(path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            if current:
                self._held[row] = descriptor
                return True
            os.close(descriptor)  # its last holder removed it meanwhile: the lock that counts is on a new file

    def _drop(self, rows: Iterable[Row]) -> None:
        for row in rows:
            path = self.store.results / FOLDER / f"{digest(list(row))[:32]}.lock"
            path.unlink(missing_ok=True)  # while it is locked: nobody else's claim is removed
            os.close(self._held.pop(row))


def _locked(descriptor: int, *, wait: bool) -> bool:
    """Lock a file; whether it is locked now. A file system without locks refuses nobody."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def names(folder: Path) -> list[str]:
    """Return the names of the records in a folder."""
    return [path.name for path in folder.glob("*.json")]
