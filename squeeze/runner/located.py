"""Find the folder that a name on the command line stands for; where it may, what is not built yet is built."""

from __future__ import annotations

import re
from pathlib import Path

from squeeze.artifacts import keys
from squeeze.core.cache import cache_root
from squeeze.core.errors import SqueezeError, hint
from squeeze.records.rows import find
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.request.choices import Choices
from squeeze.request.expand import cells
from squeeze.runner.in_process import artifact_of

KEY = re.compile(r"[0-9a-f]{6,64}")  # shorter ones would be guesses


def located(name: str, results: Path) -> Path:
    """Return the folder of a model or an artifact.

    name: a folder; a request such as ``technique=rtn bits=4``; a model of conf/model; the beginning of an artifact's
    key in the cache; or a row of ``results``: its label, or the beginning of its key or attempt.
    Raises SqueezeError for a name that stands for nothing, or for several things, and whatever building raises.
    """
    if Path(name).is_dir():
        return Path(name)
    if "=" in name:
        return artifact_of(_only_cell(name))
    if name in (models := Choices.within(None).names("model")):
        return artifact_of(_only_cell(f"model={name} technique=none"))
    if "/" in name or name.startswith("."):
        raise SqueezeError(f"{name}: no such folder; expected one with artifact.json or config.json in it")
    return _in_cache(name) or _of_record(name, results, models)


def built(name: str, results: Path) -> Path:
    """Return the folder of an artifact that is there: a folder, a key in the cache, or a row; nothing is built.

    Raises SqueezeError for a name that stands for none, for several, or for one that the cache has not.
    """
    if Path(name).is_dir():
        return Path(name)
    if (folder := _in_cache(name)) is not None:
        return folder
    try:
        record = find(RecordStore(results), [name])[name]
    except SqueezeError as error:
        raise SqueezeError(f"{error}; expected a folder, or a row of {results} (choose one with --results)") from error
    if not (folder := keys.folder(record.artifact_key)).is_dir():
        raise SqueezeError(
            f"{name}: its artifact is not in the cache (status {record.status}); `squeeze show {name}` says by which"
            " request it was made, and `squeeze run` with that and --fresh makes it again"
        )
    return folder


def _only_cell(request: str) -> Cell:
    found = cells(request.split())
    if len(found) != 1:
        labels = ", ".join(cell.label for cell in found)
        raise SqueezeError(f"{request!r} stands for {len(found)} cells ({labels}); give one value for each axis")
    return found[0]


def _in_cache(name: str) -> Path | None:
    if not KEY.fullmatch(name):
        return None
    found = sorted(path for path in (cache_root() / "artifacts").glob(f"{name}*/artifact") if path.is_dir())
    if len(found) > 1:
        raise SqueezeError(f"{name!r} begins the keys of {len(found)} artifacts in the cache; give more of it")
    return found[0] if found else None


def _of_record(name: str, results: Path, models: list[str]) -> Path:
    """Return the artifact of a measured row; one that the cache has lost is built again, if it would be the same."""
    store = RecordStore(results)
    try:
        record = find(store, [name])[name]
    except SqueezeError as error:
        raise SqueezeError(
            f"{error}; expected a folder, a model ({hint(name, models)}), a row of {results}, or a request in quotes "
            "such as 'technique=rtn bits=4'"
        ) from error
    folder, cell = keys.folder(record.artifact_key), Cell.from_json(record.cell)
    if folder.is_dir():
        return folder
    if keys.artifact_key(cell) != record.artifact_key:
        raise SqueezeError(
            f"{name}: its artifact is not in the cache, and this version of squeeze or of its libraries would build "
            f"another; measure it anew (squeeze rerun {name}), or give the request in quotes to build today's"
        )
    return artifact_of(cell)
