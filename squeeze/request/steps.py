"""Find the technique that a step's ``_target_`` names, by reading source: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from squeeze.core import plugins
from squeeze.core.errors import SqueezeError, Unsupported, hint, shown
from squeeze.core.plugins import Named
from squeeze.request.declared import dataclasses, in_words, is_among, literals
from squeeze.request.declared import fields as declared_fields

KIND, METHOD = "techniques", "apply"  # folder, and what makes a dataclass one
BEFORE_NAMES = f"squeeze.{KIND}."  # how records written before techniques had names begin theirs
NO_FOLDER = ("baseline", "control", "combined")  # families of choices that are none of the techniques' own
TRAINING = "training"  # the folder whose name a choice may have that takes steps of others, too


@dataclass(frozen=True)
class Target:
    """Describe a technique's class, as its source declares it.

    found: where it lies, and the one spelling of its name that a cell holds, such as ``gptq.GPTQ``. family: the folder
    that it lies in; empty for a plugin's that lies in none. fields: name -> whether a step must give it. floats: the
    fields that are declared as float. allowed: the values of those that are declared as ``Literal[...]``, or as that
    or None.
    """

    found: Named
    family: str
    fields: Mapping[str, bool]
    floats: frozenset[str]
    allowed: Mapping[str, tuple[Any, ...]]


def check_step(step: Any, where: str = "step") -> Target:
    """Return the target of a step such as ``{_target_: rtn.RoundToNearest, bits: 4}``.

    Raises SqueezeError unless ``_target_`` names a technique (see ``find``), and the other keys are its fields, all
    without a default among them; Unsupported for a value that the technique has no code for.
    """
    if not isinstance(step, Mapping) or not isinstance(step.get("_target_"), str):
        raise SqueezeError(f"{where}: {shown(step)} is not allowed; expected _target_: FILE.CLASS and its fields")
    try:
        target = find(step["_target_"])
    except SqueezeError as error:
        raise SqueezeError(f"{where}._target_: {error}") from error
    for name in step.keys() - {"_target_"}:
        if name not in target.fields:
            raise SqueezeError(f"{where}: {target.found.attribute} has no field {name!r}; {hint(name, target.fields)}")
    missing = [name for name, needed in target.fields.items() if needed and name not in step]
    if missing:
        needs = f"{target.found.attribute} needs {', '.join(missing)}"
        raise SqueezeError(f"{where}: {needs}; its fields: {', '.join(target.fields)}")
    for name, allowed in target.allowed.items():
        if name in step and not is_among(step[name], allowed):
            choices = in_words(allowed)
            raise Unsupported(
                f"{where}.{name}: {shown(step[name])} is not allowed; {target.found.name} has code for {choices}"
            )
    return target


def check_family(family: str, targets: Iterable[Target]) -> None:
    """Check that a choice's family is the folder of all its techniques, or says why there is no such folder.

    One of several folders is ``combined`` or, where something lies there, ``training``.

    Raises SqueezeError.
    """
    if family in NO_FOLDER:
        return
    if family not in families():
        raise SqueezeError(f"technique.family: {family!r} is not allowed; {hint(family, [*families(), *NO_FOLDER])}")
    known = list(targets)
    if family == TRAINING and any(target.family == TRAINING for target in known):
        return
    for target in known:
        if target.family not in ("", family):
            raise SqueezeError(
                f"technique.family: {family!r} is not allowed; expected {target.family!r}, where"
                f" {target.found.name} lies, or 'combined'"
            )


@cache
def find(path: str) -> Target:
    """Return the technique that is called ``FILE.CLASS``, or ``PLUGIN:FILE.CLASS``.

    Records of before have dotted paths, ``squeeze.techniques.FILE.CLASS`` or ``squeeze.techniques.FAMILY.FILE.CLASS``:
    they stand for the same file and class, wherever the file lies now.
    Raises SqueezeError unless it is a dataclass with an ``apply`` method, defined (not merely importable) in a file of
    that name, in a folder of techniques.
    """
    found = plugins.find(KIND, _short(path))
    techniques = dataclasses(found.file, METHOD)
    if found.attribute not in techniques:
        raise SqueezeError(
            f"{path!r} is refused: {found.module} defines no technique {found.attribute!r};"
            f" {hint(found.attribute, techniques)}"
        )
    declared = declared_fields(techniques[found.attribute])
    return Target(
        found,
        _family(found.file),
        fields={field: item.value is None for field, item in declared.items()},
        floats=frozenset(field for field, item in declared.items() if ast.unparse(item.annotation) == "float"),
        allowed={field: only for field, item in declared.items() if (only := literals(item.annotation))},
    )


def families() -> list[str]:
    """Return the names of the folders that techniques lie in, those of installed plugins among them."""
    offering = (plugins.HOUSE, *plugins.installed().values())
    return sorted({_family(file) for plugin in offering for file in plugins.modules(KIND, plugin).values()} - {""})


def _short(path: str) -> str:
    """Return ``FILE.CLASS`` of a dotted path; any other name as it is."""
    if not path.startswith(BEFORE_NAMES):
        return path
    parts = path.removeprefix(BEFORE_NAMES).split(".")
    if len(parts) not in (2, 3) or not all(part.isidentifier() for part in parts):
        raise SqueezeError(f"{path!r} is refused; expected FILE.CLASS of squeeze/{KIND}, or PLUGIN:FILE.CLASS")
    return ".".join(parts[-2:])


def _family(file: Path) -> str:
    return "" if file.parent.name == KIND else file.parent.name
