"""Which class a step's ``_target_`` names: our own techniques only, checked without importing any of them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from squeeze.core.errors import SqueezeError, hint
from squeeze.core.paths import PACKAGE

TECHNIQUES = "squeeze.techniques"


@dataclass(frozen=True)
class Target:
    """A technique's class, as its source declares it.

    fields: name -> whether a step must give it. floats: the fields that are declared as float.
    """

    module: str
    name: str
    fields: Mapping[str, bool]
    floats: frozenset[str]


def check_step(step: Any, where: str = "step") -> Target:
    """The target of a step such as ``{_target_: squeeze.techniques.quantization.rtn.RoundToNearest, bits: 4}``.

    Raises SqueezeError unless ``_target_`` is a dataclass with an ``apply`` method, defined (not merely importable) in
    a module under squeeze.techniques, and the other keys are its fields, all without a default among them.
    """
    if not isinstance(step, Mapping) or not isinstance(step.get("_target_"), str):
        raise SqueezeError(
            f"{where}: {step!r} is not allowed; expected _target_: {TECHNIQUES}.MODULE.CLASS and its fields"
        )
    target = find(step["_target_"], where)
    for name in step.keys() - {"_target_"}:
        if name not in target.fields:
            raise SqueezeError(f"{where}: {target.name} has no field {name!r}; {hint(name, target.fields)}")
    missing = [name for name, needed in target.fields.items() if needed and name not in step]
    if missing:
        raise SqueezeError(f"{where}: {target.name} needs {', '.join(missing)}; its fields: {', '.join(target.fields)}")
    return target


@cache
def find(path: str, where: str = "step") -> Target:
    """The target that a dotted path names; see ``check_step``."""
    module, _, name = path.rpartition(".")
    if not module.startswith(f"{TECHNIQUES}."):
        raise SqueezeError(f"{where}._target_: {path!r} is refused; expected {TECHNIQUES}.MODULE.CLASS")
    source = _source(module)
    if source is None:
        raise SqueezeError(f"{where}._target_: no module {module!r}; {hint(module, _modules())}")
    techniques = _techniques(source)
    if name not in techniques:
        raise SqueezeError(f"{where}._target_: {module} defines no technique {name!r}; {hint(name, techniques)}")
    declared = _declared(techniques[name])
    return Target(
        module,
        name,
        fields={field: item.value is None for field, item in declared.items()},
        floats=frozenset(field for field, item in declared.items() if ast.unparse(item.annotation) == "float"),
    )


def _source(module: str) -> Path | None:
    parts = module.removeprefix(f"{TECHNIQUES}.").split(".")
    path = _folder().joinpath(*parts).with_suffix(".py")
    return path if all(part.isidentifier() for part in parts) and path.is_file() else None


def _folder() -> Path:
    return PACKAGE / "techniques"


def _modules() -> list[str]:
    return [
        f"{TECHNIQUES}.{'.'.join(path.relative_to(_folder()).with_suffix('').parts)}"
        for path in sorted(_folder().rglob("[!_]*.py"))
    ]


def _techniques(source: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and _is_technique(node)}


def _is_technique(node: ast.ClassDef) -> bool:
    decorators = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    names = {item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", "") for item in decorators}
    return "dataclass" in names and any(
        isinstance(item, ast.FunctionDef) and item.name == "apply" for item in node.body
    )


def _declared(node: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    return {
        item.target.id: item
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
