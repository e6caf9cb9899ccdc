"""List what a module is made of, by reading source files: nothing is imported. Standard library only.

A module may be squeeze's or a plugin's: ``packages`` maps top-level names to the folders in which they lie.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from squeeze.core.paths import PACKAGE

HOUSE: Mapping[str, Path] = {PACKAGE.name: PACKAGE}
BY_NAME = frozenset({"find_spec", "import_module"})  # called with a literal, they import it or ask whether one could


def closure(modules: Iterable[str], packages: Mapping[str, Path] = HOUSE) -> dict[str, Path]:
    """Return the files of the named modules and of all that these import of the packages, directly or through others.

    Raises FileNotFoundError for a named module that no package has.
    """
    files: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in files:
            files[module] = source_file(module, packages)
            inside = (name for name in imported(module, files[module]) if _top(name) in packages)
            waiting.extend(_module(name, packages) for name in inside)
    return dict(sorted(files.items()))


def libraries(files: Mapping[str, Path], packages: Mapping[str, Path] = HOUSE) -> frozenset[str]:
    """Return the top-level packages that the modules themselves import, other than these and the standard library's."""
    names = {_top(name) for module, file in files.items() for name in imported(module, file)}
    return frozenset(names - sys.stdlib_module_names - packages.keys())


def source_file(module: str, packages: Mapping[str, Path] = HOUSE) -> Path:
    """Return the file that holds ``module``.

    Raises FileNotFoundError.
    """
    if (top := _top(module)) not in packages:
        raise FileNotFoundError(f"no module {module} in {', '.join(packages)}")
    path = packages[top].joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no module {module} in {top}")


def imported(module: str, file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=file.name == "__init__.py")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _by_name(node)


def _by_name(node: ast.Call) -> Iterator[str]:
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    match node.args:
        case [ast.Constant(value=str(name)), *_] if function in BY_NAME and not name.startswith("."):
            yield name


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parents = module.split(".")
    kept = parents[: len(parents) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _top(name: str) -> str:
    return name.partition(".")[0]


def _module(name: str, packages: Mapping[str, Path]) -> str:
    """Return the module that a dotted name denotes, or in which it is defined."""
    try:
        source_file(name, packages)
    except FileNotFoundError:
        return name.rpartition(".")[0]
    return name
