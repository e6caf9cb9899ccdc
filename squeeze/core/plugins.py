"""Find the packages that offer techniques, layers, runtimes and configuration: squeeze, and whoever is installed to.

A distribution offers a package through the entry point group ``squeeze.plugins``: the entry point's name is what people
write before the colon (``mine:svd.SVD``), its value the top-level package, laid out as squeeze is: ``techniques/*.py``
or ``techniques/FAMILY/*.py``, ``layers/*.py``, ``runtimes/*.py``, ``conf/technique/*.yaml``, ... Its code is trusted,
for it was installed; still, only ``load`` imports any of it: files are found by their names.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from squeeze.core.errors import SqueezeError, hint
from squeeze.core.paths import PACKAGE

GROUP = "squeeze.plugins"
KINDS: Mapping[str, tuple[str, ...]] = {  # folder -> where in squeeze its files lie; a plugin's may lie in either place
    "techniques": ("*/*.py",),  # what lies beside the families is their machinery
    "layers": ("*.py",),
    "runtimes": ("*.py",),
}


@dataclass(frozen=True)
class Plugin:
    """Describe a package that offers things by name.

    name: what is written before the colon; empty for squeeze. package: its top-level name. folder: where it lies.
    version: of its distribution, such as ``"squeeze-svd 1.0"``.
    """

    name: str
    package: str
    folder: Path
    version: str = ""


@dataclass(frozen=True)
class Named:
    """Describe a class that a name stands for: ``FILE.CLASS`` of squeeze, ``PLUGIN:FILE.CLASS`` of a plugin.

    file: the source of ``module``, where ``attribute`` should be defined; whether it is, is for the reader to see.
    """

    name: str
    plugin: Plugin
    module: str
    attribute: str
    file: Path


HOUSE = Plugin("", PACKAGE.name, PACKAGE)


def installed() -> Mapping[str, Plugin]:
    """Return the installed plugins by name.

    Raises SqueezeError for an entry point that names no package, and for a name that two distributions offer.
    """
    return _installed(tuple(sys.path))


def packages() -> dict[str, Path]:
    """Map squeeze and each plugin's package to the folder where it lies."""
    return {plugin.package: plugin.folder for plugin in (HOUSE, *installed().values())}


def modules(kind: str, plugin: Plugin = HOUSE) -> dict[str, Path]:
    """Map the modules of a plugin that hold techniques, layers or runtimes to their files."""
    patterns = KINDS[kind] if plugin is HOUSE else ("*.py", "*/*.py")
    files = (path for pattern in patterns for path in sorted((plugin.folder / kind).glob(pattern)))
    return {
        ".".join((plugin.package, *path.relative_to(plugin.folder).with_suffix("").parts)): path
        for path in files
        if not path.name.startswith("_")
    }


def find(kind: str, name: str) -> Named:
    """Return where the class lies that ``FILE.CLASS`` or ``PLUGIN:FILE.CLASS`` stands for.

    kind: techniques, layers or runtimes. No path is made of the name: it is only compared with what there is.
    Raises SqueezeError for another form, for a plugin that is not installed, and unless one file has that name.
    """
    prefix, colon, rest = name.rpartition(":")
    file, _, attribute = rest.partition(".")
    if not (file.isidentifier() and attribute.isidentifier()) or bool(colon) != bool(prefix):
        raise SqueezeError(f"{name!r} is refused; expected FILE.CLASS of squeeze/{kind}, or PLUGIN:FILE.CLASS")
    if prefix and prefix not in installed():
        raise SqueezeError(f"{name!r} is refused: no plugin {prefix!r} is installed; {hint(prefix, installed())}")
    plugin = installed()[prefix] if prefix else HOUSE
    there = modules(kind, plugin)
    found = [(module, path) for module, path in there.items() if path.stem == file]
    if len(found) > 1:
        raise SqueezeError(f"{name!r} is refused: it may be {' or '.join(module for module, _ in found)}; rename one")
    if not found:
        known = hint(file, {path.stem for path in there.values()})
        raise SqueezeError(f"{name!r} is refused: {plugin.package}/{kind} has no {file}.py; {known}")
    module, path = found[0]
    return Named(name, plugin, module, attribute, path)


def load(found: Named) -> type[Any]:
    """Import the class that was found.

    Raises SqueezeError unless the module itself defines a class of that name: what it merely imports is refused.
    """
    made: Any = vars(importlib.import_module(found.module)).get(found.attribute)
    if not isinstance(made, type) or (made.__module__, made.__qualname__) != (found.module, found.attribute):
        raise SqueezeError(f"{found.name!r} is refused: {found.module} defines no class {found.attribute!r}")
    return made


def name_of(made: type) -> str:
    """Return the name by which ``find`` finds a class again.

    Raises SqueezeError for a class of a package that is neither squeeze nor an installed plugin.
    """
    package, _, module = made.__module__.partition(".")
    short = f"{module.rpartition('.')[2]}.{made.__qualname__}"
    if package == HOUSE.package:
        return short
    for plugin in installed().values():
        if plugin.package == package:
            return f"{plugin.name}:{short}"
    raise SqueezeError(f"{made.__module__}.{made.__qualname__}: no installed plugin offers the package {package!r}")


def versions(request: Any) -> dict[str, str]:
    """Map the plugins that the ``_target_``s of a request name to their distributions, such as ``squeeze-svd 1.0``.

    request: plain data, such as a cell's technique or runtime. One that is not installed is ``absent``.
    """
    names = sorted(set(_plugins(request)))
    return {name: installed()[name].version if name in installed() else "absent" for name in names}


def _plugins(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str) and ":" in target:
            yield target.partition(":")[0]
        node = node.values()
    if isinstance(node, Iterable) and not isinstance(node, str):
        for item in node:
            yield from _plugins(item)


@lru_cache(maxsize=8)
def _installed(_path: tuple[str, ...]) -> Mapping[str, Plugin]:
    """Return the plugins on this ``sys.path``, cached: looking through all distributions takes a tenth of a second."""
    found: dict[str, Plugin] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        plugin = _plugin(point)
        if point.name in found:
            both = f"{found[point.name].version} and {plugin.version}"
            raise SqueezeError(f"the plugin {point.name!r} is offered by {both}; uninstall one of them")
        found[point.name] = plugin
    return found


def _plugin(point: metadata.EntryPoint) -> Plugin:
    version = f"{point.dist.name} {point.dist.version}" if point.dist else ""
    spec = find_spec(point.value) if point.value.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not re.fullmatch(r"[A-Za-z0-9_-]+", point.name) or not folders:
        raise SqueezeError(
            f"{version} offers the plugin {point.name!r} = {point.value!r}; expected a name of letters, digits, '_' and"
            " '-', and a package's top-level name; mend or uninstall it"
        )
    return Plugin(point.name, point.value, Path(folders[0]).resolve(), version)
