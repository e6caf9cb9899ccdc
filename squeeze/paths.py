"""Where the parts that are not Python modules lie: beside the package in a checkout, inside it when installed."""

from pathlib import Path

from squeeze.errors import SqueezeError

PACKAGE = Path(__file__).resolve().parent


def benches() -> Path:
    """The folder of the benches. Raises SqueezeError when the installation lacks it."""
    for folder in (PACKAGE / "benches", PACKAGE.parent / "benches"):
        if folder.is_dir():
            return folder
    raise SqueezeError("no folder benches/ in or beside the package squeeze: install it again")
