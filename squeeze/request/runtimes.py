"""Check the fields of a runtime against those that its class declares, by reading source: nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squeeze.core import plugins
from squeeze.core.errors import SqueezeError, hint, shown
from squeeze.request.declared import dataclasses, fields, in_words, is_among, literals
from squeeze.request.rules import SCALAR, check_value

KIND, METHOD = "runtimes", "load"  # folder, and what makes a dataclass one
OF_THE_CHOICE = frozenset({"name", "_target_"})  # no fields of the class


def check_fields(runtime: Mapping[str, Any]) -> None:
    """Check that a resolved runtime names a class, and has its fields alone, all without a default among them.

    A field that the class declares as ``Literal[...]`` has one of those values. Raises SqueezeError, which names the
    field, the value and what is allowed.
    """
    target = str(runtime["_target_"])
    try:
        found = plugins.find(KIND, target)
    except SqueezeError as error:
        raise SqueezeError(f"runtime._target_: {error}") from error
    classes = dataclasses(found.file, METHOD)
    if found.attribute not in classes:
        raise SqueezeError(
            f"runtime._target_: {target!r} is refused: {found.module} defines no runtime {found.attribute!r};"
            f" {hint(found.attribute, classes)}"
        )
    declared = fields(classes[found.attribute])
    for name in sorted(runtime.keys() - OF_THE_CHOICE):
        if name not in declared:
            raise SqueezeError(f"unknown field 'runtime.{name}' of {target}; {hint(name, declared)}")
    for name, field in declared.items():
        if name in runtime:
            _check(f"runtime.{name}", runtime[name], literals(field.annotation))
        elif field.value is None:
            raise SqueezeError(f"runtime.{name} is missing: {target} needs it; its fields: {', '.join(declared)}")


def _check(where: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not allowed:
        check_value(where, value, SCALAR)
    elif not is_among(value, allowed):
        raise SqueezeError(f"{where}: {shown(value)} is not allowed; expected one of {in_words(allowed)}")
