"""Show one row, whole: show."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squeeze.commands.options import config_option, results_option

if TYPE_CHECKING:
    from squeeze.records.record import Record
    from squeeze.records.store import RecordStore


@click.command()
@click.argument("row")
@results_option
@config_option
@click.option(
    "--curve",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw the loss curve of its training into a file, and print nothing else.",
)
def show(row: str, results: Path, config_dir: Path | None, picture: Path | None) -> None:
    """Show all of one ROW: its figures in words, how to make it again, its files, how to load it.

    ROW is a label, or the beginning of a key or an attempt, as `squeeze board` and `squeeze list` show them.
    """
    from squeeze.boards.row import figures
    from squeeze.core.progress import console
    from squeeze.records.record import Status
    from squeeze.records.rows import called, find
    from squeeze.records.sanitize import line
    from squeeze.records.store import RecordStore

    store = RecordStore(results)
    record = find(store, {row})[row]
    if picture is not None:
        _draw(record, row, picture)
        return
    records = list(store.records(lambda *_: None))
    names = dict(zip((each.attempt for each in records), called(records), strict=True))
    lines = [f"{names[record.attempt]}: {record.status}, attempt {record.attempt[:12]}, finished {record.finished}"]
    if record.status is not Status.OK:
        lines += [
            f"failed in {record.stage}: {record.reason}",
            *(f"  | {each}" for each in record.log_tail.split("\n")),
        ]
    lines += [*figures(record, records), *_recipe(record, config_dir), *_files(store, record), *_loading(record)]
    out = console()
    for text in lines:
        indent = " " * (len(text) - len(text.lstrip()))
        out.print(f"{indent}{line(text)}", soft_wrap=True, markup=False)


def _recipe(record: Record, config_dir: Path | None) -> Iterator[str]:
    from squeeze.request.cell import Cell
    from squeeze.request.recipe import recipe

    found = recipe(Cell.from_json(record.cell), config_dir)
    yield "to make it again:" if found.exact else f"to make it again, nearly ({found.why}):"
    yield f"  squeeze run {shlex.join(found.overrides)}"


def _files(store: RecordStore, record: Record) -> Iterator[str]:
    from squeeze.artifacts import keys
    from squeeze.records.store import stem
    from squeeze.request.cell import Cell

    cell = Cell.from_json(record.cell)
    of_record, log = store.folder / f"{stem(cell, record.attempt)}.json", store.log(cell, record.attempt)
    yield "files:"
    yield f"  record: {of_record}"
    if record.samples:
        yield f"  raw samples: {store.folder / Path(record.samples['file']).name}"
    if log.is_file():
        yield f"  log: {log}"
    folder = keys.folder(record.artifact_key)
    yield f"  artifact: {folder if folder.is_dir() else 'not in the cache; running it again builds it'}"


def _loading(record: Record) -> Iterator[str]:
    from squeeze.artifacts import keys

    folder = keys.folder(record.artifact_key)
    if folder.is_dir():
        yield "to load it, in Python:"
        yield "  from pathlib import Path"
        yield "  from squeeze.artifacts.loading import load"
        yield f"  subject = load(Path({str(folder)!r}))   # subject.model, subject.tokenizer"


def _draw(record: Record, row: str, picture: Path) -> None:
    """Draw the loss curve that lies beside a record's artifact. Raises SqueezeError where there is none."""
    import json

    from squeeze.artifacts import keys
    from squeeze.core.errors import SqueezeError
    from squeeze.core.files import write_atomically

    known = keys.folder(record.artifact_key) / keys.BUILD_INFO
    if not known.is_file():
        raise SqueezeError(
            f"{row}: its artifact is not in the cache, where its loss curve lies; `squeeze show {row}` says how to make"
            " it again"
        )
    if not (trainings := json.loads(known.read_bytes()).get("training")):
        raise SqueezeError(f"{row}: nothing was trained, expected a row of a technique that trains")
    from squeeze.boards.curve import curve  # matplotlib: a second

    write_atomically(picture, curve(trainings))
    click.echo(f"loss curve: {picture}")
