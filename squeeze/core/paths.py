"""Find the parts that are not Python modules: beside the package in a checkout, inside it when installed."""

from pathlib import Path

from squeeze.core.errors import SqueezeError

PACKAGE = Path(__file__).resolve().parents[1]


def conf() -> Path:
    """Return the conf folder that belongs to this code."""
    return PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def benches() -> Path:
    """Return the folder of the benches. Raises SqueezeError when the installation lacks it."""
    for folder in (PACKAGE / "benches", PACKAGE.parent / "benches"):
        if folder.is_dir():
            return folder
    raise SqueezeError("no folder benches/ in or beside the package squeeze: install it again")
