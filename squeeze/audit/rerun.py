"""Measure a row anew, from its record alone, and say field by field whether it is the same (``squeeze rerun ROW``).

Nothing that an earlier run has computed is taken from the cache: the artifacts are built and scored again, those of the
baselines too. What was fetched, and which baseline is the one to beat, is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from squeeze.audit.reproduced import DRIFTED, EXACT, NOT_JUDGED, WITHIN, Verdict, verdicts
from squeeze.core.cache import nothing_computed
from squeeze.core.progress import console
from squeeze.records.rows import Side, find, unlike_environments
from squeeze.records.sanitize import line
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.jobs.launcher import WORKER
from squeeze.runner.run import run

FOLDER = "rerun"
STYLES = {DRIFTED: "red", NOT_JUDGED: "dim"}


def rerun(results: Path, name: str, command: Sequence[str] = WORKER) -> int:
    """Measure the row anew into ``results``/rerun and print the verdicts.

    name: a label, or the beginning of a key or an attempt. command: how a worker is started.
    Returns 0 when no field has drifted, 1 when one has, 130 when interrupted.
    Raises SqueezeError when no row has that name, or several; IntegrityError when its samples are not those recorded.
    """
    store, again = RecordStore(results), RecordStore(results / FOLDER)
    before = Side.of(store, find(store, [name])[name])
    known = {record.attempt for record in again.records()}
    with nothing_computed():
        code = run([before.cell], again.results, resume=False, command=command)
    if code:
        return code
    made = next(record for record in again.records() if record.key == before.record.key and record.attempt not in known)
    after = Side.of(again, made)
    unlike = [*_other_code(before, after), *unlike_environments(before.record, after.record)]
    found = list(verdicts(before, after))
    _show(before, after, unlike, found)
    return int(any(verdict.word == DRIFTED for verdict in found))


def _other_code(before: Side, after: Side) -> Iterator[str]:
    if before.record.artifact_key != after.record.artifact_key:
        yield "the code, libraries or sources that the artifact is built from"


def _show(before: Side, after: Side, unlike: Sequence[str], found: Sequence[Verdict]) -> None:
    out = console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("field", "recorded", "now", "verdict", ""):
        table.add_column(heading, overflow="fold")
    for verdict in found:
        cells = (verdict.field, verdict.recorded, verdict.now, verdict.word, verdict.why)
        table.add_row(*(Text(line(cell)) for cell in cells), style=STYLES.get(verdict.word))
    out.print(table)
    if unlike:
        out.print(Text(line(f"Not under the same conditions, they differ in {'; '.join(unlike)}.")))
    counts = Counter(verdict.word for verdict in found)
    words = ", ".join(f"{counts[word]} {word}" for word in (EXACT, WITHIN, DRIFTED, NOT_JUDGED))
    attempts = f"attempt {before.record.attempt[:12]} rerun as {after.record.attempt[:12]}"
    out.print(Text(line(f"{Cell.from_json(before.record.cell).label}, {attempts}: {words}")), soft_wrap=True)
