"""Installed distributions that offer plugins, laid out by hand: no index, no network, no pip."""

from collections.abc import Mapping
from pathlib import Path

NAMES = ("techniques", "layers", "runtimes")


def install(site: Path, name: str, files: Mapping[str, str], package: str = "", version: str = "1.0") -> Path:
    """Install the distribution ``squeeze-NAME`` into ``site``, a folder of sys.path yet to be; return its package.

    files: below the package, by relative name. package: the top-level one, NAME unless given.
    """
    folder = site / (package or name)
    for path, text in {"__init__.py": "", **{f"{kind}/__init__.py": "" for kind in NAMES}, **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    info = site / f"squeeze_{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: squeeze-{name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[squeeze.plugins]\n{name} = {folder.name}\n")
    return folder
