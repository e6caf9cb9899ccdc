"""Find what writes a format: a file of this folder with a function ``export(source, folder)``, or ``to_FORMAT``.

``python -m squeeze.artifacts.exports.by_name FORMAT SOURCE FOLDER`` writes an artifact, for whoever starts another
interpreter, whose packages the format takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from squeeze.core.errors import SqueezeError

HOME = "squeeze.artifacts.exports"


def module(layout: str) -> str:
    """Return the name of the module that a format would have, such as ``gguf`` or ``compressed-tensors``."""
    return f"{HOME}.{layout.replace('-', '_')}"


def writer(layout: str) -> Callable[..., None]:
    """Return the function that writes a format. Raises SqueezeError where there is none."""
    name = layout.replace("-", "_")
    try:
        found = vars(import_module(module(layout)))
    except ModuleNotFoundError as error:
        if error.name != module(layout):
            raise
        raise SqueezeError(f"no format {name!r}: there is no {name}.py in squeeze/artifacts/exports") from error
    if (write := found.get("export") or found.get(f"to_{name}")) is None:
        raise SqueezeError(f"no format {name!r}: its file defines neither export nor to_{name}")
    return write  # type: ignore[no-any-return]


def main(layout: str, source: str, folder: str) -> None:
    """Write the artifact in ``source`` to ``folder``; end with a line of why where that cannot be."""
    try:
        writer(layout)(Path(source), Path(folder))
    except SqueezeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
