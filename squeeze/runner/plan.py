"""What a run was asked for, kept beside its results: ``squeeze resume`` needs no arguments. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.files import write_atomically
from squeeze.request.cell import Cell

NAME = "plan.json"


def save(cells: Sequence[Cell], results: Path) -> None:
    """Keep the cells, resolved as they are now. Raises SqueezeError when the folder cannot be written."""
    try:
        write_atomically(results / NAME, json.dumps([cell.to_json() for cell in cells]).encode())
    except OSError as error:
        raise SqueezeError(f"{results / NAME} cannot be written: {error.strerror}; choose another --results") from error


def load(results: Path) -> list[Cell]:
    """The cells of the last run into this folder, in its order.

    Raises SqueezeError when there was none, IntegrityError when its plan is unreadable.
    """
    path = results / NAME
    try:
        return [Cell.from_json(data) for data in json.loads(path.read_bytes())]
    except FileNotFoundError as error:
        raise SqueezeError(f"{results}: nothing to resume; start with `squeeze run`") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path} is no plan of cells; name the cells again with `squeeze run`") from error
